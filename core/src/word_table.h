// Hash tables of words: the vocabulary, and what leads to its words.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

namespace toxicity {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "words are compared eight bytes at a time");

inline std::uint64_t load_eight(const std::uint8_t* bytes) {
    std::uint64_t eight;
    std::memcpy(&eight, bytes, sizeof eight);
    return eight;
}

// A set of hashes that may say yes wrongly, never no: small enough for the nearest cache.
class Filter {
  public:
    void add(std::uint32_t hash) { bits_[slot(hash) / 64] |= 1ull << slot(hash) % 64; }
    bool may_have(std::uint32_t hash) const { return bits_[slot(hash) / 64] >> slot(hash) % 64 & 1; }

  private:
    static constexpr int kBits = 18;  // 32 KiB; a vocabulary of 30,000 fills a tenth
    static std::uint32_t slot(std::uint32_t hash) { return (hash * 2654435769u) >> (32 - kBits); }
    std::vector<std::uint64_t> bits_ = std::vector<std::uint64_t>((1u << kBits) / 64);
};

// A word as its table compares it: all of it, where it has no more than kWhole bytes.
struct WordKey {
    static constexpr std::size_t kWhole = 11;
    // So many bytes from the start of a word on are read, whatever its length.
    static constexpr std::size_t kRead = 12;

    std::uint64_t first;  // eight bytes, zeros behind a shorter word
    std::uint32_t rest;   // three more, or a hash of all others; then the length, 255 at most

    WordKey(const std::uint8_t* word, std::size_t length) {
        std::uint32_t more;
        std::memcpy(&more, word + 8, sizeof more);
        const std::size_t inside = length < kWhole ? length : kWhole;
        first = load_eight(word) & kFirst[inside];
        rest = (more & kRest[inside]) | static_cast<std::uint32_t>(length) << 24;
        if (length > kWhole) rest = hashed_rest(word, length);
    }
    std::uint32_t hash() const {
        const std::uint64_t mixed = (first ^ rest * 0x9E3779B97F4A7C15u) * 0xD6E8FEB86659FD93u;
        return static_cast<std::uint32_t>(mixed >> 32);
    }

  private:
    static std::uint32_t hashed_rest(const std::uint8_t* word, std::size_t length);
    static constexpr std::array<std::uint64_t, kWhole + 1> make_first() {
        std::array<std::uint64_t, kWhole + 1> masks{};
        for (std::size_t n = 0; n <= kWhole; n++) masks[n] = n < 8 ? (1ull << 8 * n) - 1 : ~0ull;
        return masks;
    }
    static constexpr std::array<std::uint32_t, kWhole + 1> make_rest() {
        std::array<std::uint32_t, kWhole + 1> masks{};
        for (std::size_t n = 8; n <= kWhole; n++) masks[n] = (1u << 8 * (n - 8)) - 1;
        return masks;
    }
    static const std::array<std::uint64_t, kWhole + 1> kFirst;
    static const std::array<std::uint32_t, kWhole + 1> kRest;
};
inline constexpr std::array<std::uint64_t, WordKey::kWhole + 1> WordKey::kFirst = make_first();
inline constexpr std::array<std::uint32_t, WordKey::kWhole + 1> WordKey::kRest = make_rest();

// Word -> id, made once and read by many threads.
class WordTable {
  public:
    static constexpr std::int32_t kAbsent = -1;

    // Room for so many words, before any is put in.
    void reserve(std::size_t words);
    // The first id of a word stays. No two words have the same.
    void put(std::string_view word, std::int32_t id);

    // `word` has WordKey::kRead bytes that may be read, whatever its length.
    std::int32_t find(const std::uint8_t* word, std::size_t length) const {
        const WordKey key(word, length);
        return slots_[index_of(key, word, length)].id;
    }
    // The same, quicker for what most likely is absent.
    std::int32_t find_rare(const std::uint8_t* word, std::size_t length) const {
        const WordKey key(word, length);
        return filter_.may_have(key.hash()) ? slots_[index_of(key, word, length)].id : kAbsent;
    }
    std::int32_t find(std::string_view word) const;

  private:
    struct Slot {  // sixteen bytes
        std::uint64_t first = 0;
        std::uint32_t rest = 0;
        std::int32_t id = kAbsent;
    };
    std::size_t index_of(const WordKey& key, const std::uint8_t* word, std::size_t length) const {
        for (std::size_t i = key.hash() >> shift_;; i = (i + 1) & mask_) {
            const Slot& slot = slots_[i];
            if (slot.id == kAbsent) return i;
            if (slot.first == key.first && slot.rest == key.rest &&
                (length <= WordKey::kWhole || is_long(slot.id, word, length)))
                return i;
        }
    }
    bool is_long(std::int32_t id, const std::uint8_t* word, std::size_t length) const;

    std::vector<Slot> slots_ = std::vector<Slot>(2);
    std::size_t mask_ = 1;
    int shift_ = 31;
    Filter filter_;
    std::vector<std::string> long_words_;  // by id, those of more than kWhole bytes
};

}  // namespace toxicity
