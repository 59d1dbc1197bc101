/* The frequent part of the text -> ids rule of train/tokenizer.py, compiled.
 *
 * It folds a text, cuts it into chunks, looks them up, and takes steps c and d of the rule for unknown
 * words. Python reads the rest: a text with letters that stand alone in a row (step a), a chunk
 * with a mark that may disguise a letter (step b) or beyond ASCII. The ids are those of
 * `Tokenizer._ids` without this module, which tests compare; nothing needs it.
 *
 * Stable ABI of CPython 3.11, so that one file serves every later release.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

#define LONGEST_TOKEN 32 /* characters of an unknown word that are read */
#define MOST_READINGS 16
#define CODE_POINTS 0x110000
#define DELETED UINT32_MAX

static const char CAPSULE[] = "train._chunks.table";

/* --- Hash tables: word -> id ---------------------------------------------------------------- */
typedef struct {
    uint32_t hash;
    uint32_t length;  /* 0: a free slot */
    const char *word; /* UTF-8 */
    PyObject *id;     /* borrowed */
    uint32_t rank;    /* the same as a number */
} Slot;

typedef struct {
    Slot *slots;
    size_t mask;
} Map;

typedef struct {
    PyObject *id_of; /* dict that owns the words and the ids; nobody changes it */
    PyObject *cls, *unknown;
    uint32_t *fold; /* by code point: 0 for one that stays, DELETED, or what it becomes */
    Map words, skeletons; /* skeleton: every run of a character once */
    char *skeleton_bytes;
    int respelling, n_readings, pieces;
    Py_ssize_t shortest, longest; /* letters of a known word that another is read as */
    uint8_t reading[MOST_READINGS][256];
    uint8_t disguises[256];
} Table;

static uint32_t hash_on(uint32_t hash, uint8_t byte) { return (hash ^ byte) * 16777619u; } /* FNV-1a */
#define HASH_START 2166136261u

static uint32_t hash_of(const uint8_t *word, size_t length)
{
    uint32_t hash = HASH_START;
    for (size_t i = 0; i < length; i++)
        hash = hash_on(hash, word[i]);
    return hash;
}

static int make_map(Map *map, size_t words)
{
    size_t size = 64;
    while (size < 3 * words)
        size *= 2;
    map->mask = size - 1;
    map->slots = PyMem_Calloc(size, sizeof *map->slots);
    return map->slots ? 0 : -1;
}

static Slot *slot_of(const Map *map, uint32_t hash, const uint8_t *word, size_t length)
{
    for (size_t i = (hash ^ (hash >> 15)) & map->mask;; i = (i + 1) & map->mask) {
        Slot *slot = &map->slots[i];
        if (!slot->length || (slot->hash == hash && slot->length == length &&
                              !memcmp(slot->word, word, length)))
            return slot;
    }
}

static const Slot *find(const Map *map, const uint8_t *word, size_t length)
{
    const Slot *slot = slot_of(map, hash_of(word, length), word, length);
    return slot->length ? slot : NULL;
}

/* --- What characters are -------------------------------------------------------------------- */
enum { OTHER, LETTER, DIGIT, SPACE, MARK, BANG };
static uint8_t kind_of[256], folded[256]; /* folded: of ASCII, on which all Unicode versions agree */

static void fill_tables(void)
{
    for (int i = 0; i < 256; i++) {
        kind_of[i] = OTHER;
        folded[i] = (uint8_t)i;
    }
    for (int i = 'a'; i <= 'z'; i++) {
        kind_of[i] = LETTER;
        folded[i - 32] = (uint8_t)i;
    }
    for (int i = '0'; i <= '9'; i++)
        kind_of[i] = DIGIT;
    for (int i = 0; i < 128; i++)
        if (i <= 0x20 || i == 0x7F) {
            kind_of[i] = SPACE;
            folded[i] = ' ';
        }
    for (const char *mark = ".,'\"-()?:/="; *mark; mark++)
        kind_of[(uint8_t)*mark] = MARK;
    kind_of['!'] = BANG;
}

static int is_word(uint8_t byte) { return kind_of[byte] == LETTER || kind_of[byte] == DIGIT; }

/* `word` with every run of a character that is longer than `most` cut to `most`; its length. */
static size_t shortened(const uint8_t *word, size_t length, size_t from, size_t to, uint8_t *out)
{
    size_t written = 0;
    for (size_t i = 0; i < length;) {
        size_t run = 1;
        while (i + run < length && word[i + run] == word[i])
            run++;
        for (size_t k = 0; k < (run >= from ? to : run); k++)
            out[written++] = word[i];
        i += run;
    }
    return written;
}

/* --- Steps c and d for a word of letters and digits that the vocabulary does not have -------- */
static const Slot *known_form(const Table *table, const uint8_t *word, size_t length)
{
    uint8_t once[LONGEST_TOKEN], twice[LONGEST_TOKEN];
    const Slot *found = find(&table->words, word, length);
    if (found)
        return found;
    size_t of_once = shortened(word, length, 2, 1, once);
    if (of_once + 2 <= length) {
        size_t of_twice = shortened(word, length, 3, 2, twice);
        if ((found = find(&table->words, twice, of_twice)))
            return found;
    }
    return find(&table->skeletons, once, of_once);
}

static const Slot *with_digits_read(const Table *table, const uint8_t *word, size_t length)
{
    size_t letters = 0;
    for (size_t i = 0; i < length; i++)
        letters += kind_of[word[i]] == LETTER;
    if (letters == length || 3 * letters < length)
        return NULL;
    for (int r = 0; r < table->n_readings; r++) {
        uint8_t read[LONGEST_TOKEN];
        for (size_t i = 0; i < length; i++)
            read[i] = table->reading[r][word[i]];
        const Slot *found = known_form(table, read, length);
        if (found)
            return found;
    }
    return NULL;
}

static const Slot *unswapped(const Table *table, const uint8_t *word, size_t length)
{
    const Slot *best = NULL;
    if (length <= (size_t)table->shortest)
        return NULL;
    uint8_t swapped[LONGEST_TOKEN];
    memcpy(swapped, word, length);
    for (size_t i = 0; i + 1 < length; i++) {
        swapped[i] = word[i + 1];
        swapped[i + 1] = word[i];
        const Slot *found = find(&table->words, swapped, length);
        if (found && (!best || found->rank < best->rank))
            best = found;
        swapped[i] = word[i];
        swapped[i + 1] = word[i + 1];
    }
    return best;
}

static int bit_length(uint32_t number)
{
    int bits = 0;
    for (; number; number >>= 1)
        bits++;
    return bits;
}

/* `_cut_into_words`: the words, last one first, and how many. */
static int cut_into_words(const Table *table, const uint8_t *word, size_t length,
                          const Slot *found[LONGEST_TOKEN])
{
    int costs[LONGEST_TOKEN + 1];
    const Slot *last[LONGEST_TOKEN + 1];
    for (size_t i = 0; i <= length; i++)
        costs[i] = -1;
    costs[0] = 0;
    for (size_t start = 0; start < length; start++) {
        if (costs[start] < 0)
            continue;
        uint32_t hash = HASH_START;
        for (size_t end = start + 1; end <= length && end <= start + (size_t)table->longest; end++) {
            hash = hash_on(hash, word[end - 1]);
            if (end < start + (size_t)table->shortest)
                continue;
            const Slot *slot = slot_of(&table->words, hash, word + start, end - start);
            if (!slot->length)
                continue;
            int cost = costs[start] + bit_length(slot->rank) + 4;
            if (costs[end] < 0 || cost < costs[end]) {
                costs[end] = cost;
                last[end] = slot;
            }
        }
    }
    int words = 0;
    if (costs[length] >= 0)
        for (size_t end = length; end; end -= last[end]->length)
            found[words++] = last[end];
    return words;
}

static int append_unknown_word(const Table *table, PyObject *ids, const uint8_t *word, size_t length)
{
    if (table->respelling) {
        if (length > LONGEST_TOKEN)
            length = LONGEST_TOKEN;
        const Slot *found = known_form(table, word, length);
        if (!found)
            found = with_digits_read(table, word, length);
        if (!found)
            found = unswapped(table, word, length);
        if (found)
            return PyList_Append(ids, found->id);
        const Slot *pieces[LONGEST_TOKEN];
        int words = cut_into_words(table, word, length, pieces);
        for (int i = 0; i < words && i < table->pieces; i++)
            if (PyList_Append(ids, pieces[words - 1 - i]->id))
                return -1;
        if (words)
            return 0;
    }
    return PyList_Append(ids, table->unknown);
}

/* --- A text ---------------------------------------------------------------------------------- */
/* Appends what Python finds for a chunk: an int, or a tuple of them. */
static int append_by_python(PyObject *ids, PyObject *ids_of, const uint8_t *chunk, size_t length)
{
    PyObject *text = PyUnicode_DecodeUTF8((const char *)chunk, (Py_ssize_t)length, NULL);
    PyObject *found = text ? PyObject_GetItem(ids_of, text) : NULL;
    int failed = found == NULL;
    if (!failed && PyTuple_Check(found)) {
        Py_ssize_t several = PyTuple_Size(found);
        for (Py_ssize_t i = 0; i < several && !failed; i++)
            failed = PyList_Append(ids, PyTuple_GetItem(found, i));
    } else if (!failed) {
        failed = PyList_Append(ids, found);
    }
    Py_XDECREF(found);
    Py_XDECREF(text);
    return failed;
}

static int append_chunk(const Table *table, PyObject *ids, PyObject *ids_of, const uint8_t *chunk,
                        size_t length, Py_ssize_t most)
{
    const Slot *slot = find(&table->words, chunk, length);
    if (slot)
        return PyList_Append(ids, slot->id);
    for (size_t i = 0; i < length; i++)
        if (chunk[i] >= 128 || (table->respelling && table->disguises[chunk[i]]))
            return append_by_python(ids, ids_of, chunk, length);
    for (size_t i = 0; i < length && PyList_Size(ids) < most;) {
        size_t start = i++;
        while (is_word(chunk[start]) && i < length && is_word(chunk[i]))
            i++;
        slot = find(&table->words, chunk + start, i - start);
        if (slot ? PyList_Append(ids, slot->id)
            : is_word(chunk[start])
                ? append_unknown_word(table, ids, chunk + start, i - start)
                : PyList_Append(ids, table->unknown))
            return -1;
    }
    return 0;
}

/* Step 1: writes `utf8` folded, with spaces for what separates; what is behind the last byte. */
static uint8_t *fold_into(const Table *table, const uint8_t *utf8, size_t length, uint8_t *out)
{
    for (const uint8_t *end = utf8 + length; utf8 < end;) {
        if (*utf8 < 0x80) {
            *out++ = folded[*utf8++];
            continue;
        }
        int more = *utf8 >= 0xF0 ? 3 : *utf8 >= 0xE0 ? 2 : 1;
        uint32_t point = *utf8 & (0x3Fu >> more);
        for (int i = 1; i <= more; i++)
            point = point << 6 | (utf8[i] & 0x3Fu);
        uint32_t to = table->fold[point];
        if (!to) {
            memcpy(out, utf8, (size_t)more + 1);
            out += more + 1;
        } else if (to < 0x80) {
            *out++ = folded[to];
        } else if (to < 0x800) {
            *out++ = (uint8_t)(0xC0 | to >> 6);
            *out++ = (uint8_t)(0x80 | (to & 0x3F));
        } else if (to < 0x10000) {
            *out++ = (uint8_t)(0xE0 | to >> 12);
            *out++ = (uint8_t)(0x80 | (to >> 6 & 0x3F));
            *out++ = (uint8_t)(0x80 | (to & 0x3F));
        } else if (to != DELETED) {
            *out++ = (uint8_t)(0xF0 | to >> 18);
            *out++ = (uint8_t)(0x80 | (to >> 12 & 0x3F));
            *out++ = (uint8_t)(0x80 | (to >> 6 & 0x3F));
            *out++ = (uint8_t)(0x80 | (to & 0x3F));
        }
        utf8 += more + 1;
    }
    return out;
}

/* Whether letters or digits stand alone, three or more in a row: step a may join them. */
static int spelled_out(const uint8_t *text, const uint8_t *end)
{
    for (const uint8_t *p = text; p + 6 < end; p++)
        if (p[0] == ' ' && p[2] == ' ' && p[4] == ' ' && is_word(p[1]) && is_word(p[3]) &&
            is_word(p[5]) && memchr(" .,!?", p[6], 5))
            return 1;
    return 0;
}

/* The ids of `text`, which stands between spaces and has a zero behind it. */
static PyObject *ids_of_text(const Table *table, const uint8_t *text, const uint8_t *end,
                             Py_ssize_t most, PyObject *ids_of)
{
    if (table->respelling && spelled_out(text, end))
        return Py_NewRef(Py_None);
    PyObject *ids = PyList_New(0);
    if (!ids || PyList_Append(ids, table->cls)) {
        Py_XDECREF(ids);
        return NULL;
    }
    for (const uint8_t *p = text; p < end && PyList_Size(ids) < most;) {
        if (kind_of[*p] == SPACE) {
            p++;
            continue;
        }
        const uint8_t *chunk = p;
        for (;; p++) {
            int kind = kind_of[*p], next = kind_of[p[1]];
            if (kind == SPACE || kind == MARK || (kind == BANG && (next == SPACE || next == MARK)))
                break;
        }
        if (p == chunk)
            p++; /* a mark by itself */
        if (append_chunk(table, ids, ids_of, chunk, (size_t)(p - chunk), most)) {
            Py_DECREF(ids);
            return NULL;
        }
    }
    return ids;
}

/* ids(table, text: str, most: int, ids_of) -> list[int] | None; [CLS] and `most` more, or all. */
static PyObject *ids(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t given)
{
    if (given != 4) {
        PyErr_SetString(PyExc_TypeError, "ids() takes 4 arguments");
        return NULL;
    }
    const Table *table = PyCapsule_GetPointer(args[0], CAPSULE);
    if (!table)
        return NULL;
    Py_ssize_t length, most = PyLong_AsSsize_t(args[2]);
    if (most == -1 && PyErr_Occurred())
        return NULL;
    const char *utf8 = PyUnicode_AsUTF8AndSize(args[1], &length);
    if (!utf8) {
        if (!PyErr_ExceptionMatches(PyExc_UnicodeEncodeError))
            return NULL;
        PyErr_Clear(); /* a lone surrogate */
        return Py_NewRef(Py_None);
    }
    /* Two bytes may become three. Before the text a space, behind it a space and a zero. */
    size_t most_bytes = 2 * (size_t)length + 3;
    uint8_t small[4096], *text = small;
    if (most_bytes > sizeof small && !(text = PyMem_Malloc(most_bytes)))
        return PyErr_NoMemory();
    text[0] = ' ';
    uint8_t *end = fold_into(table, (const uint8_t *)utf8, (size_t)length, text + 1);
    *end++ = ' ';
    *end = 0;
    PyObject *found = ids_of_text(table, text, end, most < PY_SSIZE_T_MAX ? most + 1 : most, args[3]);
    if (text != small)
        PyMem_Free(text);
    return found;
}

/* --- Making a table -------------------------------------------------------------------------- */
static void free_table(PyObject *capsule)
{
    Table *table = PyCapsule_GetPointer(capsule, CAPSULE);
    if (!table)
        return;
    Py_XDECREF(table->id_of);
    Py_XDECREF(table->cls);
    Py_XDECREF(table->unknown);
    PyMem_Free(table->fold);
    PyMem_Free(table->words.slots);
    PyMem_Free(table->skeletons.slots);
    PyMem_Free(table->skeleton_bytes);
    PyMem_Free(table);
}

static int fill_words(Table *table, size_t *bytes)
{
    PyObject *word, *id;
    Py_ssize_t at = 0, length;
    if (make_map(&table->words, (size_t)PyDict_Size(table->id_of)))
        return -1;
    while (PyDict_Next(table->id_of, &at, &word, &id)) {
        const char *utf8 = PyUnicode_AsUTF8AndSize(word, &length);
        long rank = PyLong_AsLong(id);
        if (!utf8 || (rank == -1 && PyErr_Occurred()))
            return -1;
        if (length == 0)
            continue;
        uint32_t hash = hash_of((const uint8_t *)utf8, (size_t)length);
        *slot_of(&table->words, hash, (const uint8_t *)utf8, (size_t)length) =
            (Slot){hash, (uint32_t)length, utf8, id, (uint32_t)rank};
        *bytes += (size_t)length;
    }
    return 0;
}

/* Of several words with one skeleton, the first. */
static int fill_skeletons(Table *table, size_t bytes)
{
    PyObject *word, *id;
    Py_ssize_t at = 0, length;
    if (make_map(&table->skeletons, (size_t)PyDict_Size(table->id_of)) ||
        !(table->skeleton_bytes = PyMem_Malloc(bytes + 1)))
        return -1;
    uint8_t *free_bytes = (uint8_t *)table->skeleton_bytes;
    while (PyDict_Next(table->id_of, &at, &word, &id)) {
        const uint8_t *utf8 = (const uint8_t *)PyUnicode_AsUTF8AndSize(word, &length);
        int letters = utf8 && length >= table->shortest;
        for (Py_ssize_t i = 0; i < length && letters; i++)
            letters = kind_of[utf8[i]] == LETTER;
        if (!letters)
            continue;
        size_t written = shortened(utf8, (size_t)length, 2, 1, free_bytes);
        uint32_t hash = hash_of(free_bytes, written);
        Slot *slot = slot_of(&table->skeletons, hash, free_bytes, written);
        if (slot->length)
            continue;
        *slot = (Slot){hash, (uint32_t)written, (char *)free_bytes, id, 0};
        free_bytes += written;
    }
    return 0;
}

static int fill_readings(Table *table, PyObject *lookalikes, PyObject *readings, PyObject *mask)
{
    Py_ssize_t n = PyTuple_Size(readings), length, letters;
    const char *alike = PyUnicode_AsUTF8AndSize(lookalikes, &length);
    const char *any = PyUnicode_AsUTF8AndSize(mask, NULL);
    if (n < 0 || !alike || !any)
        return -1;
    if (n > MOST_READINGS) {
        PyErr_SetString(PyExc_ValueError, "too many readings");
        return -1;
    }
    table->n_readings = (int)n;
    for (int r = 0; r < n; r++) {
        const char *letter = PyUnicode_AsUTF8AndSize(PyTuple_GetItem(readings, r), &letters);
        if (!letter)
            return -1;
        if (letters != length) {
            PyErr_SetString(PyExc_ValueError, "a reading has not as many letters as lookalikes");
            return -1;
        }
        for (int i = 0; i < 256; i++)
            table->reading[r][i] = (uint8_t)i;
        for (Py_ssize_t i = 0; i < length; i++)
            table->reading[r][(uint8_t)alike[i]] = (uint8_t)letter[i];
    }
    for (Py_ssize_t i = 0; i < length; i++)
        table->disguises[(uint8_t)alike[i]] = !is_word((uint8_t)alike[i]);
    table->disguises['!'] = 1;
    for (; *any; any++)
        table->disguises[(uint8_t)*any] = 1;
    return 0;
}

static int fill_fold(Table *table, PyObject *fold)
{
    PyObject *from, *to;
    Py_ssize_t at = 0;
    /* Mostly zeros that are never touched, so that they take no memory. */
    if (!(table->fold = PyMem_Calloc(CODE_POINTS, sizeof *table->fold)))
        return -1;
    while (PyDict_Next(fold, &at, &from, &to)) {
        long point = PyLong_AsLong(from), becomes = PyLong_AsLong(to);
        if (PyErr_Occurred())
            return -1;
        if (point < 0 || point >= CODE_POINTS || becomes < -1 || becomes == 0 ||
            becomes >= CODE_POINTS) {
            PyErr_SetString(PyExc_ValueError, "fold has a code point that is none");
            return -1;
        }
        table->fold[point] = becomes == -1 ? DELETED : (uint32_t)becomes;
    }
    return 0;
}

/* VERSION counts the changes of what `table` and `ids` take and give.
 *
 * table(id_of: dict[str, int], cls: int, unknown: int, fold: dict[int, int],
 *       respelling: None | tuple[lookalikes, readings, mask, pieces, shortest, longest])
 * `fold` has the code points beyond ASCII that change; one that vanishes has -1. */
static PyObject *make_table(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *id_of, *cls, *unknown, *fold, *respelling, *lookalikes, *readings, *mask;
    if (!PyArg_ParseTuple(args, "O!OOO!O", &PyDict_Type, &id_of, &cls, &unknown, &PyDict_Type,
                          &fold, &respelling))
        return NULL;
    Table *table = PyMem_Calloc(1, sizeof *table);
    if (!table)
        return PyErr_NoMemory();
    PyObject *capsule = PyCapsule_New(table, CAPSULE, free_table);
    if (!capsule) {
        PyMem_Free(table);
        return NULL;
    }
    table->id_of = Py_NewRef(id_of);
    table->cls = Py_NewRef(cls);
    table->unknown = Py_NewRef(unknown);
    size_t bytes = 0;
    int failed = fill_words(table, &bytes) || fill_fold(table, fold);
    if (!failed && respelling != Py_None) {
        table->respelling = 1;
        failed = !PyArg_ParseTuple(respelling, "UO!Uinn", &lookalikes, &PyTuple_Type, &readings,
                                   &mask, &table->pieces, &table->shortest, &table->longest) ||
                 fill_readings(table, lookalikes, readings, mask) || fill_skeletons(table, bytes);
    }
    if (failed) {
        if (!PyErr_Occurred())
            PyErr_NoMemory();
        Py_CLEAR(capsule);
    }
    return capsule;
}

static PyMethodDef methods[] = {
    {"table", make_table, METH_VARARGS, "A vocabulary and how its unknown words are read."},
    {"ids", (PyCFunction)(void (*)(void))ids, METH_FASTCALL,
     "Ids of a text, or None where Python must read it."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_chunks", "Compiled part of the tokenizer.", -1, methods, NULL, NULL,
    NULL, NULL,
};

PyMODINIT_FUNC PyInit__chunks(void)
{
    fill_tables();
    PyObject *module = PyModule_Create(&definition);
    if (module && PyModule_AddIntConstant(module, "VERSION", 2))
        Py_CLEAR(module);
    return module;
}
