// Steps 1 and 2 of the rule (tokenizer.h): what each code point becomes, and what it is.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "json.h"

namespace toxicity {

constexpr std::uint32_t kCodePoints = 0x110000;

// What ASCII is once it is folded.
enum class Kind : std::uint8_t { other, letter, digit, space, mark, bang };
constexpr std::array<Kind, 256> make_kinds() {
    std::array<Kind, 256> kinds{};
    for (int i = 'a'; i <= 'z'; i++) kinds[static_cast<std::size_t>(i)] = Kind::letter;
    for (int i = '0'; i <= '9'; i++) kinds[static_cast<std::size_t>(i)] = Kind::digit;
    for (std::size_t i = 0; i <= 0x20; i++) kinds[i] = Kind::space;
    kinds[0x7F] = Kind::space;
    for (const char mark : std::string_view(".,'\"-()?:/="))
        kinds[static_cast<std::size_t>(mark)] = Kind::mark;
    kinds['!'] = Kind::bang;
    return kinds;
}
inline constexpr std::array<Kind, 256> kKindOf = make_kinds();
inline bool is_word(std::uint8_t byte) {
    return kKindOf[byte] == Kind::letter || kKindOf[byte] == Kind::digit;
}

class Characters {
  public:
    // The tables of a tokenizer's document. Throws BadInput for some that no Unicode version has.
    explicit Characters(const Json& document);

    // Writes `utf8` folded, with a space for each code point that separates, to `out`, which has room
    // for twice its bytes, and gives the end.
    std::uint8_t* fold(std::string_view utf8, std::uint8_t* out) const;
    // Of a folded code point.
    bool is_word_point(std::uint32_t point) const { return entry(point) & kWord; }
    // Category L*, of what is a word character.
    bool is_letter_point(std::uint32_t point) const { return entry(point) & kLetter; }

  private:
    static constexpr std::uint32_t kTarget = 0x1FFFFF, kWord = 1u << 28, kLetter = 1u << 29,
                                   kDeleted = 1u << 30, kSpace = 1u << 31;
    static constexpr int kBlockBits = 8;

    std::uint32_t entry(std::uint32_t point) const {
        return blocks_[block_of_[point >> kBlockBits]][point & ((1u << kBlockBits) - 1)];
    }
    std::uint32_t& entry_to_write(std::uint32_t point);
    bool skip_unsaid(std::uint32_t& point) const;
    void mark_ranges(const Json& ranges, const char* what, std::uint32_t bit);
    void read_folds(const Json& document);
    void check() const;

    // Blocks of code points; those in which nothing is said share the first.
    std::array<std::uint16_t, (kCodePoints >> kBlockBits)> block_of_{};
    std::vector<std::array<std::uint32_t, 1u << kBlockBits>> blocks_{1};
};

}  // namespace toxicity
