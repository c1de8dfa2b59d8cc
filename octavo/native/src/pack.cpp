// Weights into packed units, rows of them back to floats, and the checksum of a pack.
#include "pack.h"
#include "kernels.h"
#include <cstring>

using namespace octavo;

namespace {

// Row r of quantised weights, one byte a weight: int8 as it is, int4 as value + 8.
uint8_t weight_at(const uint8_t *q, int64_t r, int64_t c, int64_t cols, int bits) {
    if (bits == 8) return q[r * cols + c];
    const uint8_t both = q[r * ((cols + 1) / 2) + c / 2];
    return c % 2 ? both >> 4 : both & 15;
}

// One row of a group, `group` being that row's first quad or pair.
void put_quantised(uint8_t *group, const uint8_t *q, int64_t row, int64_t first, int64_t cols, int bits, int lanes) {
    for (int64_t c = 0; c < OCT_GROUP; c++) {
        const int64_t quad = c / 4;
        const uint8_t zero = bits == 4 ? 8 : 0;
        const uint8_t w = q && first + c < cols ? weight_at(q, row, first + c, cols, bits) : zero;
        uint8_t *byte = group + (bits == 4 ? quad % 4 : quad) * lanes * 4 + c % 4;
        if (bits == 8 || quad < 4) *byte = w;   // a low nibble comes first, and clears the high one
        else *byte |= uint8_t(w << 4);
    }
}

void put_bf16(uint8_t *group, const uint16_t *q, int64_t row, int64_t first, int64_t cols, int lanes) {
    for (int64_t c = 0; c < OCT_GROUP; c++) {
        const uint16_t w = q && first + c < cols ? q[row * cols + first + c] : 0;
        memcpy(group + c / 2 * lanes * 4 + c % 2 * 2, &w, 2);
    }
}

}   // namespace

extern "C" int64_t octavo_packed_bytes(int64_t rows, int64_t cols, int32_t bits) {
    return units_of(rows) * unit_bytes(groups_of(cols), bits, kernels().lanes);
}

extern "C" void octavo_pack(uint8_t *packed, const void *q, const uint16_t *scales, int64_t rows, int64_t cols,
                            int32_t bits, int64_t first, int64_t step) {
    const int lanes = kernels().lanes;
    const int64_t groups = groups_of(cols);
    for (int64_t row = 0; row < units_of(rows) * OCT_UNIT; row++) {
        const int64_t unit = first + row / OCT_UNIT * step, tile = row % OCT_UNIT / lanes, lane = row % lanes;
        uint8_t *at = packed + unit * unit_bytes(groups, bits, lanes) + tile * tile_bytes(groups, bits, lanes);
        uint16_t *scale = (uint16_t *)at;
        uint8_t *weights = at + scale_bytes(groups, bits, lanes);
        if (lane == 0) memset(at, 0, scale_bytes(groups, bits, lanes));
        const void *from = row < rows ? q : nullptr;   // nothing: zeros
        for (int64_t g = 0; g < groups; g++) {
            uint8_t *group = weights + g * group_bytes(bits, lanes) + lane * 4;
            if (bits == 16) {
                put_bf16(group, (const uint16_t *)from, row, g * OCT_GROUP, cols, lanes);
            } else {
                scale[g * lanes + lane] = row < rows ? scales[row * groups + g] : 0;
                put_quantised(group, (const uint8_t *)from, row, g * OCT_GROUP, cols, bits, lanes);
            }
        }
    }
}

// CRC-32C (RFC 3720, appendix B.4), eight bytes at a time by tables.
extern "C" uint32_t octavo_crc32c(const uint8_t *data, int64_t bytes, uint32_t crc) {
    static const auto tables = [] {
        struct { uint32_t at[8][256]; } t;
        for (uint32_t i = 0; i < 256; i++) {
            uint32_t c = i;
            for (int bit = 0; bit < 8; bit++) c = c & 1 ? c >> 1 ^ 0x82f63b78u : c >> 1;
            t.at[0][i] = c;
        }
        for (int k = 1; k < 8; k++)
            for (int i = 0; i < 256; i++) t.at[k][i] = t.at[k - 1][i] >> 8 ^ t.at[0][t.at[k - 1][i] & 255];
        return t;
    }();
    crc = ~crc;
    for (; bytes >= 8; data += 8, bytes -= 8) {
        uint32_t low, high;
        memcpy(&low, data, 4), memcpy(&high, data + 4, 4);
        low ^= crc;
        crc = tables.at[7][low & 255] ^ tables.at[6][low >> 8 & 255] ^ tables.at[5][low >> 16 & 255] ^
              tables.at[4][low >> 24] ^ tables.at[3][high & 255] ^ tables.at[2][high >> 8 & 255] ^
              tables.at[1][high >> 16 & 255] ^ tables.at[0][high >> 24];
    }
    for (; bytes > 0; data++, bytes--) crc = tables.at[0][(crc ^ *data) & 255] ^ crc >> 8;
    return ~crc;
}
