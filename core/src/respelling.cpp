#include "respelling.h"

#include <cstring>

#include "errors.h"
#include "utf8.h"

namespace toxicity {
namespace {

constexpr std::size_t kMostReadings = 16;
constexpr std::size_t kMostBytes = 4 * kMostLetters + WordKey::kRead;  // of an unknown word

// Of letters in any order.
std::uint32_t letters_hash(std::uint32_t sum, std::uint32_t letter) {
    letter = (letter + 1) * 2654435769u;
    return sum + (letter ^ letter >> 15) * 2246822519u;
}

int bit_length(std::int32_t number) {
    int bits = 0;
    for (; number; number >>= 1) bits++;
    return bits;
}

bool has_letters(const std::uint8_t* word, std::size_t length) {
    std::size_t letters = 0;
    for (std::size_t i = 0; i < length; i++) letters += kKindOf[word[i]] == Kind::letter;
    return 3 * letters >= length;
}

// Letters of UTF-8 `bytes` that begin at `start[0]`, `start[1]`, ..., the last entry their end; behind
// it, WordKey::kRead bytes may be read.
struct Spelling {
    const std::uint8_t* bytes;
    const std::uint16_t* start;
    int length;
};

// The known words of `shortest` letters or more that a spelling most likely is, as ids, last one
// first, and how many; 0 if it is none.
//
// Word number r by frequency has a probability of about 1/(11 r) (Zipf's law), so it costs
// log2 r + 3.5 bits; in whole numbers, so that every machine adds up the same.
int cut_into_words(const Spelling& spelling, int shortest, const WordTable& words,
                   std::array<std::int32_t, kMostSpelledOut>& ids,
                   std::array<std::uint8_t, kMostSpelledOut>* lengths = nullptr) {
    std::array<int, kMostSpelledOut + 1> cost, from;
    std::array<std::int32_t, kMostSpelledOut + 1> last;
    const int length = spelling.length;
    for (int i = 0; i <= length; i++) cost[static_cast<std::size_t>(i)] = -1;
    cost[0] = 0;
    for (int begin = 0; begin < length; begin++) {
        const int spent = cost[static_cast<std::size_t>(begin)];
        if (spent < 0) continue;
        const std::uint8_t* word = spelling.bytes + spelling.start[begin];
        for (int end = begin + shortest; end <= length && end <= begin + kLongestWord; end++) {
            if (end == begin + 1 && *word != 'a' && *word != 'i') continue;
            const auto size = static_cast<std::size_t>(spelling.start[end] - spelling.start[begin]);
            const std::int32_t id = words.find_rare(word, size);
            if (id == WordTable::kAbsent) continue;
            const int sum = spent + bit_length(id) + 4;
            const auto at = static_cast<std::size_t>(end);
            if (cost[at] < 0 || sum < cost[at]) {
                cost[at] = sum;
                from[at] = begin;
                last[at] = id;
            }
        }
    }
    int found = 0;
    if (cost[static_cast<std::size_t>(length)] < 0) return 0;
    for (int end = length; end; end = from[static_cast<std::size_t>(end)]) {
        const auto at = static_cast<std::size_t>(end), n = static_cast<std::size_t>(found++);
        ids[n] = last[at];
        if (lengths) (*lengths)[n] = static_cast<std::uint8_t>(end - from[at]);
    }
    return found;
}

}  // namespace

// Code points of a word: bytes where all are ASCII.
template <class Unit>
struct Respelling::Word {
    std::array<Unit, kMostLetters + WordKey::kRead> letters;
    int length = 0;

    Unit operator[](int i) const { return letters[static_cast<std::size_t>(i)]; }
    Unit& operator[](int i) { return letters[static_cast<std::size_t>(i)]; }

    // As UTF-8 in `bytes`; `start`, of `length` + 1, is where each letter begins.
    int encode(std::array<std::uint8_t, kMostBytes>& bytes, std::uint16_t* start) const {
        std::uint8_t* out = bytes.data();
        for (int i = 0; i < length; i++) {
            start[i] = static_cast<std::uint16_t>(out - bytes.data());
            out = encode_utf8((*this)[i], out);
        }
        start[length] = static_cast<std::uint16_t>(out - bytes.data());
        return start[length];
    }

    std::int32_t id_in(const WordTable& words) const {
        if constexpr (sizeof(Unit) == 1) {
            return words.find_rare(letters.data(), static_cast<std::size_t>(length));
        } else {
            std::array<std::uint8_t, kMostBytes> bytes;
            std::uint8_t* out = bytes.data();
            for (int i = 0; i < length; i++) out = encode_utf8((*this)[i], out);
            return words.find_rare(bytes.data(), static_cast<std::size_t>(out - bytes.data()));
        }
    }

    bool repeats() const {
        for (int i = 1; i < length; i++)
            if ((*this)[i] == (*this)[i - 1]) return true;
        return false;
    }

    // With every run of a letter of `from` or more cut to `to`.
    Word shortened(int from, int to) const {
        Word out;
        for (int i = 0; i < length;) {
            int run = 1;
            while (i + run < length && (*this)[i + run] == (*this)[i]) run++;
            for (int k = 0; k < (run >= from ? to : run); k++) out[out.length++] = (*this)[i];
            i += run;
        }
        return out;
    }
};

Respelling::Respelling(const Json& document, const std::vector<std::string>& vocabulary) {
    const auto refuse = [](const std::string& what) -> void {
        throw BadInput("the tokenizer's respelling " + what + "; train again");
    };
    const std::string& alike = document.at("lookalikes").as_string("lookalikes");
    const std::string& mask = document.at("mask").as_string("mask");
    const std::vector<Json>& readings = document.at("readings").as_array("readings");
    const std::int64_t pieces = document.at("pieces").as_integer("pieces");
    if (mask.size() != 1 || static_cast<std::uint8_t>(mask[0]) >= 0x80 ||
        kKindOf[static_cast<std::uint8_t>(mask[0])] == Kind::space ||
        is_word(static_cast<std::uint8_t>(mask[0])))
        refuse("has the mask '" + mask + "', expected one ASCII mark");
    if (pieces < 1 || pieces > kMostLetters)
        refuse("has " + std::to_string(pieces) + " pieces, expected 1 to 32");
    if (readings.size() > kMostReadings) refuse("has more than 16 readings");
    mask_ = static_cast<std::uint8_t>(mask[0]);
    pieces_ = static_cast<int>(pieces);
    std::array<std::uint8_t, 256> same;
    for (std::size_t i = 0; i < 256; i++) same[i] = static_cast<std::uint8_t>(i);
    all_masked_ = same;
    marks_[mask_] = disguises_[mask_] = disguises_['!'] = true;
    all_masked_[mask_] = mask_;
    for (const char c : alike) {
        const auto byte = static_cast<std::uint8_t>(c);
        if (byte >= 0x80 || kKindOf[byte] == Kind::space || (byte >= 'A' && byte <= 'Z'))
            refuse("has a look-alike that is no folded ASCII character");
        alike_[byte] = true;
        if (is_word(byte)) continue;
        marks_[byte] = disguises_[byte] = true;
        all_masked_[byte] = mask_;
    }
    for (const Json& reading : readings) {
        const std::string& letters = reading.as_string("a reading");
        if (letters.size() != alike.size()) refuse("needs a letter for each look-alike");
        readings_.push_back(same);
        for (std::size_t i = 0; i < letters.size(); i++) {
            if (letters[i] < 'a' || letters[i] > 'z') refuse("reads what is no letter");
            readings_.back()[static_cast<std::uint8_t>(alike[i])] = static_cast<std::uint8_t>(letters[i]);
        }
    }
    if (readings_.empty()) refuse("has no readings");

    skeletons_.reserve(vocabulary.size());
    for (std::size_t id = 0; id < vocabulary.size(); id++) {
        const std::string& word = vocabulary[id];
        if (word.empty()) continue;  // a special token
        std::uint32_t sum = 0;
        int letters = 0;
        bool ascii_letters = true;
        const auto* at = reinterpret_cast<const std::uint8_t*>(word.data());
        for (const std::uint8_t* end = at + word.size(); at < end; letters++) {
            ascii_letters = ascii_letters && kKindOf[*at] == Kind::letter;
            sum = letters_hash(sum, decode_utf8(at, end));
        }
        if (letters > kShortestWord) letters_.add(sum);
        if (!ascii_letters || letters < kShortestWord) continue;
        std::string skeleton;
        for (const char c : word)
            if (skeleton.empty() || skeleton.back() != c) skeleton += c;
        skeletons_.put(skeleton, static_cast<std::int32_t>(id));
        if (letters <= kMostLetters) {
            Bucket& bucket = alike_words_[word[0] << 8 | letters];
            bucket.words += word;
            bucket.ids.push_back(static_cast<std::int32_t>(id));
        }
    }
}

// --- Step a -----------------------------------------------------------------------------------
namespace {

// Whether one of eight bytes is a space with two more, each behind one byte. Reads twelve bytes.
bool may_stand_alone(const std::uint8_t* at) {
    constexpr std::uint64_t kEach = 0x0101010101010101, kSpaces = ' ' * kEach;
    const std::uint64_t other = (load_eight(at) ^ kSpaces) | (load_eight(at + 2) ^ kSpaces) |
                                (load_eight(at + 4) ^ kSpaces);
    return (other - kEach) & ~other & 0x80 * kEach;  // a zero byte
}

bool ends_spelled_out(std::uint8_t byte) { return byte && std::strchr(" .,!?", byte); }

// Letters that stand alone in a row from the space at `at` on, 0 for fewer than three; step a.
// The last byte of a text is a space, so nothing is read behind it.
int letters_alone(const std::uint8_t* at, const std::uint8_t* end) {
    int letters = 0;
    while (letters < kMostSpelledOut && end - at > 2 * letters + 2 && at[2 * letters] == ' ' &&
           is_word(at[2 * letters + 1]))
        letters++;
    if (letters && !ends_spelled_out(at[2 * letters])) letters--;
    return letters < 3 ? 0 : letters;
}

}  // namespace

std::uint8_t* Respelling::join_spelled_out(std::uint8_t* const begin, std::uint8_t* const end,
                                           int most, const WordTable& words,
                                           int& joined) const {
    const std::uint8_t* from = begin;
    std::uint8_t* to = begin;
    for (; from < end; from++) {
        // Eight bytes at once where none begins two letters that stand alone.
        while (end - from >= 12 && !may_stand_alone(from)) {
            const std::uint64_t eight = load_eight(from);
            std::memcpy(to, &eight, sizeof eight);
            from += 8;
            to += 8;
        }
        int letters = 0;
        if (*from == ' ' && end - from > 6 && from[2] == ' ' && from[4] == ' ' && most > 0)
            letters = letters_alone(from, end);
        if (!letters) {
            *to++ = *from;
            continue;
        }
        most--;
        std::array<std::uint8_t, kMostSpelledOut> alone;
        std::array<std::uint8_t, kMostSpelledOut + WordKey::kRead> read;
        std::array<std::uint16_t, kMostSpelledOut + 1> start;
        for (int i = 0; i <= letters; i++) start[static_cast<std::size_t>(i)] = static_cast<std::uint16_t>(i);
        for (int i = 0; i < letters; i++) {
            const auto at = static_cast<std::size_t>(i);
            alone[at] = from[2 * i + 1];
            read[at] = readings_[0][alone[at]];
        }
        std::array<std::int32_t, kMostSpelledOut> ids;
        std::array<std::uint8_t, kMostSpelledOut> lengths;
        int found = 0;
        if (has_letters(alone.data(), static_cast<std::size_t>(letters)))
            found = cut_into_words({read.data(), start.data(), letters}, 1, words, ids, &lengths);
        const std::uint8_t* const behind = from + 2 * letters;
        joined += found > 0;
        if (!found) {
            std::memmove(to, from, static_cast<std::size_t>(behind - from));
            to += behind - from;
        }
        const std::uint8_t* letter = read.data();
        for (int word = found - 1; word >= 0; word--) {
            *to++ = ' ';
            for (int i = 0; i < lengths[static_cast<std::size_t>(word)]; i++) *to++ = *letter++;
        }
        from = behind - 1;
    }
    return to;
}

// --- Step b -----------------------------------------------------------------------------------
std::int32_t Respelling::unmasked(const Word<std::uint8_t>& word, const WordTable& words) const {
    const auto length = static_cast<std::size_t>(word.length);
    if (!std::memchr(word.letters.data(), mask_, length)) return known_form(word, words);
    if (word.length == kShortestWord) return WordTable::kAbsent;  // "a*b" is a product
    const auto bucket = alike_words_.find(word[0] << 8 | word.length);
    if (bucket == alike_words_.end()) return WordTable::kAbsent;
    const char* known = bucket->second.words.data();
    for (const std::int32_t id : bucket->second.ids) {
        std::size_t i = 0;
        while (i < length && (word.letters[i] == mask_ ||
                              word.letters[i] == static_cast<std::uint8_t>(known[i])))
            i++;
        if (i == length) return id;
        known += length;
    }
    return WordTable::kAbsent;
}

Disguise Respelling::disguised(const std::uint8_t* run, std::size_t length,
                               const WordTable& words) const {
    Disguise found;
    if (length > static_cast<std::size_t>(kMostLetters)) return found;
    std::size_t start = 0;
    while (start < length && (run[start] == '!' || run[start] == mask_)) start++;
    for (const bool any_mark : {false, true}) {
        std::size_t end = length;
        while (end > start &&
               (any_mark ? marks_[run[end - 1]] : run[end - 1] == '!' || run[end - 1] == mask_))
            end--;
        const std::size_t size = end - start;
        bool plain = true;
        for (std::size_t i = start; i < end; i++) plain = plain && is_word(run[i]);
        if (plain || size < static_cast<std::size_t>(kShortestWord) || !has_letters(run + start, size))
            continue;
        Word<std::uint8_t> word;
        word.length = static_cast<int>(size);
        const auto read_as = [&](const std::array<std::uint8_t, 256>& reading) {
            for (std::size_t i = 0; i < size; i++) word.letters[i] = reading[run[start + i]];
            const std::int32_t id = unmasked(word, words);
            if (id != WordTable::kAbsent && (found.id == WordTable::kAbsent || id < found.id))
                found.id = id;
        };
        for (const auto& reading : readings_) read_as(reading);
        read_as(all_masked_);
        if (found.id != WordTable::kAbsent) {
            found.start = start;
            found.end = end;
            break;
        }
    }
    return found;
}

// --- Steps c and d ----------------------------------------------------------------------------
template <class Unit>
std::int32_t Respelling::known_form(const Word<Unit>& word, const WordTable& words) const {
    std::int32_t id = word.id_in(words);
    if (id != WordTable::kAbsent) return id;
    if (!word.repeats()) return word.id_in(skeletons_);
    const Word<Unit> once = word.shortened(2, 1);
    if (once.length <= word.length - 2) {
        id = word.shortened(3, 2).id_in(words);
        if (id != WordTable::kAbsent) return id;
    }
    return once.id_in(skeletons_);
}

template <class Unit>
std::int32_t Respelling::unswapped(const Word<Unit>& word, const WordTable& words) const {
    std::int32_t best = WordTable::kAbsent;
    if (word.length <= kShortestWord) return best;
    std::uint32_t sum = 0;
    for (int i = 0; i < word.length; i++) sum = letters_hash(sum, word[i]);
    if (!letters_.may_have(sum)) return best;
    Word<Unit> swapped = word;
    for (int i = 0; i + 1 < word.length; i++) {
        std::swap(swapped[i], swapped[i + 1]);
        const std::int32_t id = swapped.id_in(words);
        if (id != WordTable::kAbsent && (best == WordTable::kAbsent || id < best)) best = id;
        std::swap(swapped[i], swapped[i + 1]);
    }
    return best;
}

template <class Unit>
int Respelling::read(const Word<Unit>& word, const WordTable& words, const Characters* characters,
                     std::array<std::int32_t, kMostLetters>& ids) const {
    const auto is_letter = [&](Unit unit) {
        return unit < 0x80 ? kKindOf[static_cast<std::uint8_t>(unit)] == Kind::letter
                           : characters && characters->is_letter_point(unit);
    };
    std::int32_t known = known_form(word, words);
    if (known == WordTable::kAbsent) {
        int letters = 0;
        bool has_alike = false;
        for (int i = 0; i < word.length; i++) {
            letters += is_letter(word[i]);
            has_alike = has_alike || (word[i] < 0x80 && alike_[static_cast<std::uint8_t>(word[i])]);
        }
        if (has_alike && letters < word.length && 3 * letters >= word.length)
            for (std::size_t r = 0; r < readings_.size() && known == WordTable::kAbsent; r++) {
                Word<Unit> as_letters = word;
                for (int i = 0; i < word.length; i++)
                    if (word[i] < 0x80)
                        as_letters[i] = readings_[r][static_cast<std::uint8_t>(word[i])];
                known = known_form(as_letters, words);
            }
    }
    if (known == WordTable::kAbsent) known = unswapped(word, words);
    if (known != WordTable::kAbsent) {
        ids[0] = known;
        return 1;
    }
    std::array<std::uint8_t, kMostBytes> bytes;
    std::array<std::uint16_t, kMostSpelledOut + 1> start;
    word.encode(bytes, start.data());
    std::array<std::int32_t, kMostSpelledOut> last_first;
    const int found =
        cut_into_words({bytes.data(), start.data(), word.length}, kShortestWord, words, last_first);
    const int read = found < pieces_ ? found : pieces_;
    for (int i = 0; i < read; i++)
        ids[static_cast<std::size_t>(i)] = last_first[static_cast<std::size_t>(found - 1 - i)];
    return read;
}

int Respelling::read_unknown(const std::uint8_t* word, std::size_t length, bool ascii,
                             const WordTable& words, const Characters& characters,
                             std::array<std::int32_t, kMostLetters>& ids) const {
    if (ascii) {
        Word<std::uint8_t> letters;
        letters.length = static_cast<int>(length < kMostLetters ? length : kMostLetters);
        std::memcpy(letters.letters.data(), word, static_cast<std::size_t>(letters.length));
        return read(letters, words, nullptr, ids);
    }
    Word<char32_t> letters;
    for (const std::uint8_t *at = word, *end = word + length; at < end && letters.length < kMostLetters;)
        letters[letters.length++] = decode_utf8(at, end);
    return read(letters, words, &characters, ids);
}

}  // namespace toxicity
