"""The part of numpy's C API that the native core uses: what numpy 1 and numpy 2 have at the same place."""

from __future__ import annotations

import re
from pathlib import Path

import numpy

from tests.support.folders import REPOSITORY

FOLDER = REPOSITORY / "native/python"
#: Functions and types in the same place of numpy's table in both, by their places.
TABLE = {
    "PyArray_GetNDArrayCVersion": 0,
    "PyArray_Type": 2,
    "PyArray_CheckExact": 2,
    "PyArray_IsScalar": 10,  # of a generic scalar
    "PyArray_DescrFromType": 45,
    "PyArray_Scalar": 60,
    "PyArray_FromScalar": 61,
    "PyArray_CopyObject": 84,
    "PyArray_NewCopy": 85,
    "PyArray_UpdateFlags": 92,
    "PyArray_NewFromDescr": 94,
    "PyArray_SIZE": 158,
    "PyArray_GetNDArrayCFeatureVersion": 211,
    "PyArray_SetBaseObject": 282,
}
#: Macros over the fields of an array, which are the same in both, and over `byteorder` and `type_num` of a dtype.
FIELDS = {
    f"PyArray_{name}"
    for name in ["BYTES", "DATA", "DESCR", "DIM", "DIMS", "FLAGS", "NDIM", "STRIDE", "STRIDES", "TYPE"]
}
FIELDS |= {f"PyArray_{name}" for name in ("ISNBO", "ISWRITEABLE", "IS_C_CONTIGUOUS", "Descr", "API")}


def used(text: str) -> set[str]:
    return set(re.findall(r"\b(?:PyArray|PyDataType|PyUFunc)_\w+|\bPy\w*ArrType\w*", text))


def test_the_core_uses_nothing_of_numpy_that_version_2_has_moved() -> None:
    header = (FOLDER / "numpy_abi.h").read_text()
    refused = set(re.findall(r"^#undef (\w+)", header, re.MULTILINE))
    sources = [path for path in FOLDER.glob("*.[ch]") if path.name != "numpy_abi.h"]

    names = set().union(*(used(path.read_text()) for path in sources)) | used(header) - refused

    assert names == TABLE.keys() | FIELDS


def test_the_places_are_those_of_the_headers_here() -> None:
    header = (Path(numpy.get_include()) / "numpy/__multiarray_api.h").read_text()
    places = dict(re.findall(r"#define (\w+) \\?\s*\(\*\(.*?\)\s*\\?\s*PyArray_API\[(\d+)\]\)", header))
    direct = {name: int(places[name]) for name in TABLE if name in places}

    assert direct == {name: TABLE[name] for name in direct}
    assert TABLE.keys() - direct == {"PyArray_CheckExact", "PyArray_IsScalar", "PyArray_SIZE"}
    assert {name: int(places[name]) for name in ("PyGenericArrType_Type", "PyArray_MultiplyList")} == {
        "PyGenericArrType_Type": 10,
        "PyArray_MultiplyList": 158,
    }


def test_fields_of_a_dtype_are_those_that_both_have() -> None:
    fields = {field for path in FOLDER.glob("*.[ch]") for field in re.findall(r"\bdescr->(\w+)", path.read_text())}

    assert fields == {"byteorder", "type_num"}
