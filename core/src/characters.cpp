#include "characters.h"

#include <cstring>
#include <iterator>

#include "errors.h"
#include "utf8.h"

namespace toxicity {
namespace {

struct Range {
    std::uint32_t first, last;
};
#include "unicode_letters.inc"

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

// The same for eight bytes at once; false, and nothing changed, where one is not ASCII. A sum in
// which no byte reaches 256 sets the high bit of each that reaches 128.
bool fold_ascii(std::uint64_t& eight) {
    constexpr std::uint64_t kEach = 0x0101010101010101, kHigh = 0x80 * kEach;
    if (eight & kHigh) return false;
    const std::uint64_t from_a = eight + (0x80 - 'A') * kEach, behind_z = eight + (0x7F - 'Z') * kEach;
    const std::uint64_t controls = (~(eight + (0x80 - ' ') * kEach) | (eight + kEach)) & kHigh;
    const std::uint64_t separates = (controls >> 7) * 0xFF;
    eight |= (from_a & ~behind_z & kHigh) >> 2;  // 0x20, by which a small letter differs
    eight = (eight & ~separates) | (' ' * kEach & separates);
    return true;
}

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

std::uint8_t* Characters::fold(std::string_view utf8, std::uint8_t* out) const {
    const auto* from = reinterpret_cast<const std::uint8_t*>(utf8.data());
    for (const std::uint8_t* end = from + utf8.size(); from < end;) {
        if (end - from >= 8) {
            std::uint64_t eight;
            std::memcpy(&eight, from, sizeof eight);
            if (fold_ascii(eight)) {
                std::memcpy(out, &eight, sizeof eight);
                from += 8;
                out += 8;
                continue;
            }
        }
        if (*from < 0x80) {
            *out++ = kAscii[*from++];
            continue;
        }
        const std::uint32_t point = decode_utf8(from, end), e = entry(point);
        if (e & kDeleted) continue;
        out = encode_utf8(e & kTarget ? e & kTarget : point, out);  // two bytes may become four
    }
    return out;
}

}  // namespace toxicity
