#include "characters.h"

#include <iterator>

#include "errors.h"
#include "utf8.h"

namespace toxicity {
namespace {

struct Range {
    std::uint32_t first, last;
};
#include "unicode_letters.inc"

constexpr std::array<Kind, 256> make_kinds() {
    std::array<Kind, 256> kinds{};
    for (int i = 'a'; i <= 'z'; i++) kinds[static_cast<std::size_t>(i)] = Kind::letter;
    for (int i = '0'; i <= '9'; i++) kinds[static_cast<std::size_t>(i)] = Kind::digit;
    for (std::size_t i = 0; i <= 0x20; i++) kinds[i] = Kind::space;
    kinds[0x7F] = Kind::space;
    for (char mark : std::string_view(".,'\"-()?:/=")) kinds[static_cast<std::size_t>(mark)] = Kind::mark;
    kinds['!'] = Kind::bang;
    return kinds;
}

// Step 1 for ASCII, on which all Unicode versions agree.
constexpr std::array<std::uint8_t, 128> make_ascii() {
    std::array<std::uint8_t, 128> folded{};
    for (std::size_t i = 0; i < 128; i++) {
        folded[i] = static_cast<std::uint8_t>(i >= 'A' && i <= 'Z' ? i + 32 : i);
        if (i <= 0x20 || i == 0x7F) folded[i] = ' ';
    }
    return folded;
}
constexpr std::array<std::uint8_t, 128> kAscii = make_ascii();

[[noreturn]] void refuse(const std::string& what) {
    throw BadInput("the tokenizer's " + what + "; train again");
}

std::uint32_t as_point(const Json& value, const char* what) {
    const std::int64_t point = value.as_integer(what);
    if (point < 0 || point >= static_cast<std::int64_t>(kCodePoints))
        refuse(std::string(what) + " has " + std::to_string(point) + ", expected a code point");
    return static_cast<std::uint32_t>(point);
}

}  // namespace

const std::array<Kind, 256> kKindOf = make_kinds();

std::uint32_t& Characters::entry_to_write(std::uint32_t point) {
    std::uint16_t& block = block_of_[point >> kBlockBits];
    if (!block) {
        block = static_cast<std::uint16_t>(blocks_.size());
        blocks_.emplace_back();
    }
    return blocks_[block][point & ((1u << kBlockBits) - 1)];
}

// True for a point of a block of which nothing is said; moves to the last one of that block.
bool Characters::skip_unsaid(std::uint32_t& point) const {
    if (point < 128 || block_of_[point >> kBlockBits]) return false;
    point |= (1u << kBlockBits) - 1;
    return true;
}

void Characters::mark_ranges(const Json& ranges, const char* what, std::uint32_t bit) {
    for (const Json& range : ranges.as_array(what)) {
        const std::vector<Json>& ends = range.as_array(what);
        if (ends.size() != 2) refuse(std::string(what) + " has a range without two ends");
        const std::uint32_t first = as_point(ends[0], what), last = as_point(ends[1], what);
        if (first > last) refuse(std::string(what) + " has a range that ends before it begins");
        for (std::uint32_t point = first; point <= last; point++) entry_to_write(point) |= bit;
    }
}

void Characters::read_folds(const Json& document) {
    const std::string& from = document.at("fold_from").as_string("fold_from");
    const std::string& to = document.at("fold_to").as_string("fold_to");
    const auto *f = reinterpret_cast<const std::uint8_t*>(from.data()), *f_end = f + from.size();
    const auto *t = reinterpret_cast<const std::uint8_t*>(to.data()), *t_end = t + to.size();
    while (f < f_end && t < t_end) {
        const std::uint32_t point = decode_utf8(f, f_end), target = decode_utf8(t, t_end);
        std::uint32_t& entry = entry_to_write(point);
        entry = (entry & ~kTarget) | target;
    }
    if (f != f_end || t != t_end) refuse("fold_from and fold_to are of other lengths");
    for (const Json& point : document.at("deleted").as_array("deleted"))
        entry_to_write(as_point(point, "deleted")) |= kDeleted;
}

Characters::Characters(const Json& document) {
    mark_ranges(document.at("word"), "word", kWord);
    for (const Range& range : kLetterRanges)
        for (std::uint32_t point = range.first; point <= range.last; point++)
            if (is_word_point(point)) entry_to_write(point) |= kLetter;
    read_folds(document);
    // What folds to a separator is one, too.
    mark_ranges(document.at("space"), "space", kSpace);
    for (std::uint32_t point = 0; point < kCodePoints; point++) {
        if (skip_unsaid(point)) continue;
        const std::uint32_t target = entry(point) & kTarget;
        if (target >= kCodePoints) refuse("fold_to has what is no code point");
        if (entry(target ? target : point) & kSpace) {
            std::uint32_t& written = entry_to_write(point);
            written = (written & ~kTarget) | ' ';
        }
    }
    check();
}

// ASCII must fold as it does in every Unicode version, and what is folded must stay as it is.
void Characters::check() const {
    for (std::uint32_t point = 0; point < kCodePoints; point++) {
        if (skip_unsaid(point)) continue;
        const std::uint32_t e = entry(point), target = e & kTarget ? e & kTarget : point;
        if (point < 128) {
            if ((e & kDeleted) || target != kAscii[point])
                refuse("fold tables change ASCII in a way that no Unicode version does");
            const bool word = is_word(static_cast<std::uint8_t>(point)) ||
                              (point >= 'A' && point <= 'Z');
            if (word != static_cast<bool>(e & kWord))
                refuse("word ranges say of ASCII what no Unicode version does");
        }
        if ((e & kDeleted) || target == point) continue;
        const std::uint32_t next = entry(target);
        if ((next & kDeleted) || ((next & kTarget) && (next & kTarget) != target))
            refuse("fold tables fold what is folded already, which no Unicode version does");
    }
}

void Characters::fold_into(std::string_view utf8, std::string& out) const {
    const std::size_t before = out.size();
    out.resize(before + 2 * utf8.size());  // two bytes may become four
    auto* to = reinterpret_cast<std::uint8_t*>(out.data()) + before;
    const auto* from = reinterpret_cast<const std::uint8_t*>(utf8.data());
    for (const std::uint8_t* end = from + utf8.size(); from < end;) {
        if (*from < 0x80) {
            *to++ = kAscii[*from++];
            continue;
        }
        const std::uint32_t point = decode_utf8(from, end), e = entry(point);
        if (e & kDeleted) continue;
        to = encode_utf8(e & kTarget ? e & kTarget : point, to);
    }
    out.resize(static_cast<std::size_t>(to - reinterpret_cast<std::uint8_t*>(out.data())));
}

}  // namespace toxicity
