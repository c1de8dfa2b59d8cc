"""Pictures: whole files only, and a clear line before the work where one cannot be drawn."""

import sys

import pytest

from octavo.errors import UsageError, UserError
from octavo.plots import check_plot, write_png

pytest.importorskip("matplotlib")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch) -> None:
    from matplotlib.figure import Figure

    out = tmp_path / "out.png"
    out.write_text("old")

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Figure, "savefig", fail)
        with pytest.raises(UserError, match=r"out\.png: cannot be written \(No space left"):
            write_png(Figure(), out)
    assert out.read_text() == "old" and [path.name for path in tmp_path.iterdir()] == ["out.png"]
    write_png(Figure(), out)
    assert out.read_bytes().startswith(b"\x89PNG") and [path.name for path in tmp_path.iterdir()] == ["out.png"]
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(UserError, match=r"folder\.png: cannot be written \(Is a directory\); choose another"):
        write_png(Figure(), tmp_path / "folder.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.png", "out.png"]


def test_mistakes_are_told_before_the_work(tmp_path, monkeypatch) -> None:
    check_plot(tmp_path / "fine.png")
    with pytest.raises(UsageError, match=r"must end in \.png"):
        check_plot(tmp_path / "picture.jpg")
    with pytest.raises(UserError, match="no such folder"):
        check_plot(tmp_path / "absent/x.png")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"pip install 'octavo\[plot\]'"):
        check_plot(tmp_path / "fine.png")
    with pytest.raises(UsageError, match=r"must end in \.png"):
        check_plot(tmp_path / ".png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(UsageError, match="that is a folder"):
        check_plot(tmp_path / "folder.png")
    (tmp_path / "folder.png").rmdir()
    assert list(tmp_path.iterdir()) == []
