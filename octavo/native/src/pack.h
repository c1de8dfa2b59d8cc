// How weights lie in a packed matrix. A unit is 32 rows: 32 / lanes tiles of `lanes` interleaved rows. A tile is
//   scales   fp16 [groups][lanes], padded to 64 bytes; none for bf16
//   weights  [groups], each group 8 quads of 4 columns, a quad being [lanes][4] bytes: a register's lane is a row
// int8 stores the 8 quads one after the other; int4 stores 4, with quad i in the low nibbles (value + 8) and quad i + 4
// in the high ones; a group of bf16 is 16 pairs of columns, a pair being [lanes][2]. Rows and columns beyond the matrix
// hold zeros.
#pragma once
#include "octavo.h"

namespace octavo {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t groups_of(int64_t cols) { return ceil_div(cols, OCT_GROUP); }
inline int64_t units_of(int64_t rows) { return ceil_div(rows, OCT_UNIT); }
inline int64_t scale_bytes(int64_t groups, int bits, int lanes) {
    return bits == 16 ? 0 : ceil_div(groups * lanes * 2, 64) * 64;
}
inline int64_t group_bytes(int bits, int lanes) { return int64_t(OCT_GROUP) * lanes * bits / 8; }

inline int64_t tile_bytes(int64_t groups, int bits, int lanes) {
    return scale_bytes(groups, bits, lanes) + groups * group_bytes(bits, lanes);
}
inline int64_t unit_bytes(int64_t groups, int bits, int lanes) {
    return OCT_UNIT / lanes * tile_bytes(groups, bits, lanes);
}

}   // namespace octavo
