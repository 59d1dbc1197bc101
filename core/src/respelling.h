// Steps a to d of the rule (tokenizer.h): how a word outside the vocabulary may be read.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "characters.h"
#include "json.h"
#include "word_table.h"

namespace toxicity {

constexpr int kShortestWord = 3, kLongestWord = 16;  // letters of a known word
constexpr int kMostLetters = 32;                     // of an unknown word that are read
constexpr int kMostSpelledOut = 64;                  // letters in a row that step a joins

// Step b's finding in a run: what is before the word, the word's id, what is behind it.
struct Disguise {
    std::int32_t id = WordTable::kAbsent;
    std::size_t start = 0, end = 0;
};

class Respelling {
  public:
    // `vocabulary` is by id and outlives this, as `words` and `characters` do.
    Respelling(const Json& document, const std::vector<std::string>& vocabulary);

    // Step a, in place: the text is folded, between two spaces; at most `most` runs are looked at.
    // Gives the new end, and how many were joined.
    std::uint8_t* join_spelled_out(std::uint8_t* begin, std::uint8_t* end, int most,
                                   const WordTable& words, int& joined) const;
    // Whether a chunk with this byte may hold a disguised word.
    bool may_disguise(std::uint8_t byte) const { return disguises_[byte]; }
    // Whether the byte belongs to a run of step b.
    bool in_run(std::uint8_t byte) const { return is_word(byte) || marks_[byte]; }
    Disguise disguised(const std::uint8_t* run, std::size_t length, const WordTable& words) const;
    // Steps c and d: ids of an unknown word, at most `ids.size()`, and how many.
    int read_unknown(const std::uint8_t* word, std::size_t length, bool ascii,
                     const WordTable& words, const Characters& characters,
                     std::array<std::int32_t, kMostLetters>& ids) const;

  private:
    template <class Unit>
    struct Word;
    template <class Unit>
    int read(const Word<Unit>& word, const WordTable& words, const Characters* characters,
             std::array<std::int32_t, kMostLetters>& ids) const;
    template <class Unit>
    std::int32_t known_form(const Word<Unit>& word, const WordTable& words) const;
    template <class Unit>
    std::int32_t unswapped(const Word<Unit>& word, const WordTable& words) const;
    std::int32_t unmasked(const Word<std::uint8_t>& word, const WordTable& words) const;

    std::vector<std::array<std::uint8_t, 256>> readings_;
    std::array<std::uint8_t, 256> all_masked_{};
    std::array<bool, 256> marks_{}, disguises_{}, alike_{};
    std::uint8_t mask_ = 0;
    int pieces_ = 0;
    WordTable skeletons_;    // every run of a letter once -> the most frequent such word
    Filter letters_;         // of the words by their letters in any order
    // First letter and length -> those words one after the other, by rank, and their ids.
    struct Bucket {
        std::string words;
        std::vector<std::int32_t> ids;
    };
    std::unordered_map<int, Bucket> alike_words_;
};

}  // namespace toxicity
