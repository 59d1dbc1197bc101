// Hash tables of words: the vocabulary, and what leads to its words.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace toxicity {

constexpr std::uint32_t kHashStart = 2166136261u;  // FNV-1a
inline std::uint32_t hash_on(std::uint32_t hash, std::uint8_t byte) {
    return (hash ^ byte) * 16777619u;
}
inline std::uint32_t hash_of(const std::uint8_t* word, std::size_t length) {
    std::uint32_t hash = kHashStart;
    for (std::size_t i = 0; i < length; i++) hash = hash_on(hash, word[i]);
    return hash;
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

// Word -> id, made once and read by many threads.
class WordTable {
  public:
    static constexpr std::int32_t kAbsent = -1;

    // Room for so many words, before any is put in.
    void reserve(std::size_t words);
    // The first id of a word stays.
    void put(std::string_view word, std::int32_t id);

    std::int32_t find(const std::uint8_t* word, std::size_t length) const {
        return find(word, length, hash_of(word, length));
    }
    std::int32_t find(std::string_view word) const {
        return find(reinterpret_cast<const std::uint8_t*>(word.data()), word.size());
    }
    std::int32_t find(const std::uint8_t* word, std::size_t length, std::uint32_t hash) const {
        if (!filter_.may_have(hash)) return kAbsent;
        return slots_[index_of(word, length, hash)].id;
    }

  private:
    struct Slot {
        std::uint32_t hash = 0, length = 0, start = 0;  // of its bytes in `bytes_`
        std::int32_t id = kAbsent;
    };
    std::size_t index_of(const std::uint8_t* word, std::size_t length, std::uint32_t hash) const;

    std::vector<Slot> slots_ = std::vector<Slot>(1);
    std::size_t mask_ = 0;
    std::string bytes_;
    Filter filter_;
};

}  // namespace toxicity
