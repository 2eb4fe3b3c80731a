/* The names and numbers of core/wire.h as a dictionary, which a test compares with layout.py and protocol.py. */

#include "wire_table.h"

#define NUMBER(name) {#name, name},
#define IN(structure, name, offset) {structure "." #name, offset},
#define IN_HEADER(index, name, offset) IN("HEADER", name, offset)
#define IN_COUNTER_LINE(index, name, offset) IN("COUNTER_LINE", name, offset)
#define IN_REQUEST(index, name, offset) IN("REQUEST", name, offset)
#define IN_REPLY(index, name, offset) IN("REPLY", name, offset)
#define IN_KIND(name, python_name, number) IN("Kind", python_name, name)
#define IN_FLAG(name, python_name, number) IN("Flag", python_name, name)
#define IN_STATUS(name, python_name, number) IN("Status", python_name, name)

/* wire(): the offset of "REQUEST.deadline_ns", the number of "Status.OK" or "MAX_SLOTS", and so on; under the name of a
 * structure alone its size */
PyObject *wire(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
    /* clang-format off */
    static const struct {
        const char *name;
        uint64_t number;
    } entries[] = {
        WIRE_NUMBERS(NUMBER)
        HEADER_FIELDS(IN_HEADER)
        COUNTER_LINE_FIELDS(IN_COUNTER_LINE)
        REQUEST_FIELDS(IN_REQUEST)
        REPLY_FIELDS(IN_REPLY)
        KINDS(IN_KIND)
        FLAG_BITS(IN_FLAG)
        STATUSES(IN_STATUS)
        {"HEADER", sizeof(SegmentHeader)},
        {"COUNTER_LINE", sizeof(CounterLine)},
        {"REQUEST", sizeof(RequestHead)},
        {"REPLY", sizeof(ReplyHead)},
    };
    /* clang-format on */
    PyObject *table = PyDict_New();
    for (size_t index = 0; table != NULL && index < sizeof entries / sizeof *entries; index++) {
        PyObject *number = PyLong_FromUnsignedLongLong(entries[index].number);
        if (number == NULL || PyDict_SetItemString(table, entries[index].name, number) < 0)
            Py_CLEAR(table);
        Py_XDECREF(number);
    }
    return table;
}
