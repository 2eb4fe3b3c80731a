/* The wire's dtypes (core/schema.h) as numpy's. */

#ifndef SHMSERVE_DTYPES_H
#define SHMSERVE_DTYPES_H

#include "common.h"

#include "core/schema.h"

/* The wire's dtype; -1 for one that the wire does not have, or of the other byte order. */
static inline int dtype_of(PyArray_Descr *descr)
{
    if (!PyArray_ISNBO(descr->byteorder))
        return -1;
    switch (descr->type_num) {
    case NPY_BOOL:
        return DTYPE_B1;
    case NPY_BYTE:
        return DTYPE_I1;
    case NPY_UBYTE:
        return DTYPE_U1;
    case NPY_SHORT:
        return DTYPE_I2;
    case NPY_USHORT:
        return DTYPE_U2;
    case NPY_INT:
        return DTYPE_I4;
    case NPY_UINT:
        return DTYPE_U4;
    case NPY_LONG:
    case NPY_LONGLONG:
        return DTYPE_I8;
    case NPY_ULONG:
    case NPY_ULONGLONG:
        return DTYPE_U8;
    case NPY_HALF:
        return DTYPE_F2;
    case NPY_FLOAT:
        return DTYPE_F4;
    case NPY_DOUBLE:
        return DTYPE_F8;
    case NPY_CFLOAT:
        return DTYPE_C8;
    case NPY_CDOUBLE:
        return DTYPE_C16;
    default:
        return -1;
    }
}

/* numpy's dtype that stores the wire's, a new reference; bfloat16 is stored as uint16. */
static inline PyArray_Descr *descr_of(int dtype)
{
    static const int types[DTYPES] = {
        [DTYPE_B1] = NPY_BOOL,   [DTYPE_I1] = NPY_INT8,    [DTYPE_U1] = NPY_UINT8,   [DTYPE_I2] = NPY_INT16,
        [DTYPE_U2] = NPY_UINT16, [DTYPE_F2] = NPY_FLOAT16, [DTYPE_BF2] = NPY_UINT16, [DTYPE_I4] = NPY_INT32,
        [DTYPE_U4] = NPY_UINT32, [DTYPE_F4] = NPY_FLOAT32, [DTYPE_I8] = NPY_INT64,   [DTYPE_U8] = NPY_UINT64,
        [DTYPE_F8] = NPY_FLOAT64, [DTYPE_C8] = NPY_COMPLEX64, [DTYPE_C16] = NPY_COMPLEX128,
    };
    return PyArray_DescrFromType(types[dtype]);
}

#endif
