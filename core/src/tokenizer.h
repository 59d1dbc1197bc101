// The one text -> ids rule, used byte for byte by training and by serving.
//
// The rule, for a comment given as a string of Unicode code points:
//
// 1. Fold. Each code point is replaced on its own, whatever stands beside it: one of category Cf
//    (zero-width joiners, soft hyphens, direction marks) is deleted; otherwise it becomes its
//    NFKC form where that is a single code point, then its lower case where that is one. The tables
//    of newer files also replace it by the letter that it looks like, and delete what is not seen
//    (train/data/lookalikes.py).
// 2. Split. Categories L*, M* and N* are word characters. Z*, Cc and Cs separate. A token is a
//    maximal run of word characters, or any one other character.
// 3. Look up. The ids are [CLS], then one id for each token, [UNK] for a token outside the
//    vocabulary. A token of the vocabulary with a space in it is a phrase: from the left, its two
//    ids are replaced by its one. Ids past `most` are cut.
//
// With a respelling (format version 2; without one the rule is that of version 1), a disguised
// word is looked for in the vocabulary before it becomes [UNK]; a known token keeps its id:
//
// a. Before step 2, ASCII letters and digits that stand alone, one separator apart, 3 to 64 in a
//    row, are joined and cut into known words, the likeliest by rank ("i d i o t"); left if it has
//    none.
// b. A run of ASCII letters, digits and marks ("f*ck", "$h1t") without the `*` and `!` round it, or
//    without any mark behind it, is one word when, read with its look-alikes as letters and `*`, or
//    every mark, as any letter, it is a known one; of several, the most frequent.
// c. An unknown word takes the known word that it is with runs of a letter cut to two, or with all
//    runs cut to one as in the known word ("stuuupid"), or so with its digits as letters ("sh1t");
//    else the most frequent one that two neighbouring characters swapped make of it ("sutpid").
// d. What is still unknown is cut into the likeliest known words of three letters or more, of which
//    the first four count ("ballsballs").
//
// A reading counts only for what is a third letters or more. A word's first 32 characters are read.
//
// The tables of steps 1 and 2 come from the tokenizer's file, so a newer Unicode gives the same
// ids. tests/reference_tokenizer.py says the same once more in plain Python, and tests compare.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "characters.h"
#include "respelling.h"
#include "word_table.h"

namespace toxicity {

// Words of a text: tokens of word characters, read whole before the text was cut.
struct Words {
    std::int64_t all = 0;
    std::int64_t unknown = 0;    // that are [UNK]
    std::int64_t respelled = 0;  // that steps b to d have read, and runs that step a joined, beyond the cut too

    Words& operator+=(const Words& more) {
        all += more.all;
        unknown += more.unknown;
        respelled += more.respelled;
        return *this;
    }
};

class Tokenizer {
  public:
    // tokenizer.json as training writes it. Throws BadInput for anything else.
    explicit Tokenizer(std::string_view json);

    int max_len() const { return max_len_; }
    std::int32_t vocabulary_size() const { return vocabulary_size_; }

    // Puts the ids of `utf8` into `ids`, [CLS] first, 1 to `most` of them; true when it was cut.
    // `utf8` is valid, surrogates allowed; it is read no further than the ids fit. Its words are added
    // to `words`.
    bool encode(std::string_view utf8, int most, std::vector<std::int32_t>& ids,
                Words* words = nullptr) const;

    // Appends the tokens of steps 1 and 2, each with a space behind it.
    void split(std::string_view utf8, std::string& tokens) const;

  private:
    class Ids;
    explicit Tokenizer(const Json& document);
    std::vector<std::string> read_vocabulary(const Json& document);
    void read(std::string_view utf8, Ids& ids, int most) const;
    void read_chunk(const std::uint8_t* chunk, std::size_t length, Ids& ids) const;
    void read_runs(const std::uint8_t* chunk, std::size_t length, Ids& ids) const;
    void read_tokens(const std::uint8_t* text, std::size_t length, Ids& ids) const;
    bool is_word_at(const std::uint8_t*& at, const std::uint8_t* end) const;

    int max_len_ = 0;
    std::int32_t vocabulary_size_ = 0;
    Characters characters_;
    WordTable words_;
    std::optional<Respelling> respelling_;
    std::unordered_map<std::uint64_t, std::int32_t> phrase_of_;  // two ids -> one
};

}  // namespace toxicity
