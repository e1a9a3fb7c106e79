"""Lists beside the pictures: CSV, Excel sheets, JSON, XML, HDF5 columns."""

import json
import zipfile

import numpy as np
import pytest
from openpyxl import Workbook

from data_preprocessing import tables
from data_preprocessing.tables import read_hdf5_column, read_json, read_pairs, read_rows, read_xml
from usvar.errors import InputError

ROWS = [
    {"Image": "ALWI_000.png", "Label": "Benign"},
    {"Image": "ANAT (1)+é.png", "Label": "Malignant"},
]


def write_sheet(path, rows, title="first"):
    book = Workbook()
    book.active.title = title
    for row in rows:
        book.active.append(row)
    book.create_sheet("second").append(["Image", "Label", "wrong sheet"])
    book.save(path)


@pytest.mark.parametrize("mark", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_csv_of_every_dialect(tmp_path, mark, encoding, end):
    lines = [
        ["Doppler", " image", "LABEL "],
        *(["No", row["Image"], row["Label"]] for row in ROWS),
        [],
        ["", " "],
    ]
    text = end.join(mark.join(line) for line in lines)
    (tmp_path / "INFO.csv").write_bytes(text.encode(encoding))
    assert read_rows(tmp_path / "INFO.csv", ("Image", "Label")) == ROWS


def test_quotes_commas_and_line_ends_inside_cells(tmp_path):
    """The tables of the VGG annotator hold JSON."""
    attributes = json.dumps({"Comments": "Transplant ; short,\nblurred", "Quality": "Fair"})
    quoted = '"' + attributes.replace('"', '""') + '"'
    (tmp_path / "a.csv").write_text(f"filename,file_attributes\n1_IM-0001.png,{quoted}\n")
    (row,) = read_rows(tmp_path / "a.csv", ("filename", "file_attributes"))
    assert json.loads(row["file_attributes"])["Comments"] == "Transplant ; short,\nblurred"


def test_chinese_text(tmp_path):
    (tmp_path / "a.csv").write_bytes("图像,标签\n一.png,良性\n".encode("gbk"))
    assert read_rows(tmp_path / "a.csv", ("图像", "标签")) == [{"图像": "一.png", "标签": "良性"}]


def test_xlsx(tmp_path):
    """Numbers without a needless fraction, empty cells, empty rows, only the first sheet."""
    rows = [
        ["CaseID", "Image_filename ", "BIRADS"],
        [1, " case001.png", 4],
        [None] * 3,
        [2.0, "case002.png", None],
    ]
    write_sheet(tmp_path / "a.XLSX", rows)
    assert read_rows(tmp_path / "a.XLSX", ("image_filename", "CaseID", "birads")) == [
        {"image_filename": "case001.png", "CaseID": "1", "birads": "4"},
        {"image_filename": "case002.png", "CaseID": "2", "birads": ""},
    ]


@pytest.mark.parametrize("suffix", ["csv", "xlsx"])
def test_a_missing_column_is_named_with_what_was_found(tmp_path, suffix):
    path = tmp_path / f"list.{suffix}"
    if suffix == "csv":
        path.write_text("ID,Case\n1,2\n")
    else:
        write_sheet(path, [["ID", "Case"], [1, 2]])
    with pytest.raises(InputError, match=rf"list.{suffix} lacks the column Pathology, found 'ID, Case'"):
        read_rows(path, ("ID", "Pathology"))
    assert read_rows(path, ("ID",), optional=("Pathology",)) == [{"ID": "1", "Pathology": ""}]


def test_broken_lists(tmp_path):
    path = tmp_path / "a.csv"
    for text, reason in (
        ("", "is empty"),
        ("\n \n", "is empty"),
        ("ID,Label\n1,2\n3\n", "row 3 has 1 cells, its header 2"),
        ("ID,Label\n1,2\n" + "x" * 200_000 + ",2\n", "field larger"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=reason):
            read_rows(path, ("ID", "Label"))
    with pytest.raises(InputError, match=r"cannot be read \(No such file"):
        read_rows(tmp_path / "gone.csv", ("ID",))
    with pytest.raises(InputError, match=r"cannot be read \(Is a directory"):
        read_rows(tmp_path, ("ID",))


def test_rows_are_counted_with_blank_ones(tmp_path):
    (tmp_path / "list.csv").write_text("a,b\n\n,\n1,2\n3\n")
    with pytest.raises(InputError, match="row 5 has 1 cells"):
        read_rows(tmp_path / "list.csv", ("a", "b"))


def test_sheets_that_grow_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "a.xlsx"
    write_sheet(path, [["ID", "Label"], *([i, i] for i in range(50))])
    monkeypatch.setattr(tables, "MOST_ROWS", 40)
    with pytest.raises(InputError, match="more than 40 rows"):
        read_rows(path, ("ID",))
    monkeypatch.setattr(tables, "LARGEST_SHEET", 1000)
    with pytest.raises(InputError, match="unpacks to"):
        read_rows(path, ("ID",))
    monkeypatch.setattr(tables, "LARGEST_LIST", 1000)
    with pytest.raises(InputError, match="wanted a list of at most"):
        read_rows(path, ("ID",))


def test_a_cell_at_the_far_corner_takes_no_time(tmp_path):
    """A sheet may claim a million rows of sixteen thousand columns with two cells."""
    path = tmp_path / "a.xlsx"
    book = Workbook()
    book.active.append(["ID", "Label"])
    book.active["A2"] = 1
    book.active["XFD1000"] = "far"
    book.save(path)
    assert read_rows(path, ("ID", "Label")) == [{"ID": "1", "Label": ""}]


def test_entities_in_a_sheet_are_refused(tmp_path):
    path, evil = tmp_path / "a.xlsx", tmp_path / "evil.xlsx"
    write_sheet(path, [["ID", "Label"], ["x", "y"]])
    bomb = '<!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;&b;">]>'
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(evil, "w") as target:
        for name in source.namelist():
            text = source.read(name).decode()
            if name.endswith("sharedStrings.xml") or name.endswith("sheet1.xml"):
                text = bomb + text.removeprefix('<?xml version="1.0"?>')
            target.writestr(name, text)
    with pytest.raises(InputError, match="no Excel sheet that can be read"):
        read_rows(evil, ("ID",))


def test_pairs(tmp_path):
    path = tmp_path / "list.txt"
    wanted = [("0000.jpg", "1"), ("a b (1).jpg", "0")]
    for text in (
        "0000.jpg,1\na b (1).jpg,0\n",
        "0000.jpg ; 1\r\n\r\na b (1).jpg;0",
        "0000.jpg  1\na b (1).jpg\t0",
    ):
        path.write_bytes(text.encode("utf-8-sig"))
        assert read_pairs(path) == wanted
    path.write_text("0000.jpg,1\n0001.jpg\n")
    with pytest.raises(InputError, match=r"line 2 is '0001\.jpg', wanted a name and a value"):
        read_pairs(path)


def test_json(tmp_path):
    path = tmp_path / "a.json"
    value = {"shapes": [{"label": "神经", "points": [[1, 2.5], [3, 4]]}]}
    for encoding in ("utf-8", "utf-8-sig", "gbk"):
        path.write_bytes(json.dumps(value, ensure_ascii=False).encode(encoding))
        assert read_json(path) == value
    path.write_bytes('{"label": "神经", "note": "'.encode("gbk") + b'\xff"}')
    assert read_json(path)["label"] == "神经"
    for text, reason in (("", "no JSON"), ('{"a": [1, 2', "no JSON"), ("[" * 200_000, "nested too deeply")):
        path.write_text(text)
        with pytest.raises(InputError, match=reason):
            read_json(path)


def test_xml(tmp_path):
    path = tmp_path / "a.xml"
    path.write_text('<?xml version="1.0"?><case><tirads/><mark><image>1</image></mark></case>')
    assert read_xml(path).findtext("mark/image") == "1" and read_xml(path).findtext("tirads") == ""
    path.write_text('<!DOCTYPE x [<!ENTITY a "b">]><x>&a;</x>')
    with pytest.raises(InputError, match="declares XML entities"):
        read_xml(path)
    for text in ("", "<case>", "<a></b>", '<?xml version="1.0" encoding="none"?><a/>'):
        path.write_text(text)
        with pytest.raises(InputError, match="is no XML"):
            read_xml(path)


def test_hdf5_columns(tmp_path):
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "dataset.hdf5"
    with h5py.File(path, "w") as file:
        file["annot_id"] = ["159_", "160_"]
        file["fixed"] = np.array([b"159_ ", b"160_"])
        file["frame_num"] = np.array([3, 4])
        file["image"] = np.zeros((2, 30, 40), np.uint8)
        file["link"] = h5py.ExternalLink("other.h5", "/a")
    assert read_hdf5_column(path, "annot_id") == read_hdf5_column(path, "fixed") == ["159_", "160_"]
    assert read_hdf5_column(path, "frame_num") == ["3", "4"]
    for name in ("image", "gone", "link"):
        with pytest.raises(InputError, match=f"has no column '{name}'"):
            read_hdf5_column(path, name)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match="has no column"):
        read_hdf5_column(path, "annot_id")
