#include "word_table.h"

namespace toxicity {
namespace {

// Of `word`, with as many bytes as may be read: a short one lies in `room`.
const std::uint8_t* readable(std::string_view word, std::array<std::uint8_t, 16>& room) {
    const auto* bytes = reinterpret_cast<const std::uint8_t*>(word.data());
    if (word.size() >= WordKey::kRead) return bytes;
    room.fill(0);
    if (!word.empty()) std::memcpy(room.data(), bytes, word.size());
    return room.data();
}

}  // namespace

std::uint32_t WordKey::hashed_rest(const std::uint8_t* word, std::size_t length) {
    std::uint32_t hash = 2166136261u;  // FNV-1a
    for (std::size_t i = 8; i < length; i++) hash = (hash ^ word[i]) * 16777619u;
    return (hash & 0xFFFFFF) | static_cast<std::uint32_t>(length < 255 ? length : 255) << 24;
}

void WordTable::reserve(std::size_t words) {
    shift_ = 26;  // 64 slots
    while (shift_ > 1 && (std::size_t{1} << (32 - shift_)) < 2 * words) shift_--;
    slots_.assign(std::size_t{1} << (32 - shift_), Slot());
    mask_ = slots_.size() - 1;
}

bool WordTable::is_long(std::int32_t id, const std::uint8_t* word, std::size_t length) const {
    const std::string& known = long_words_[static_cast<std::size_t>(id)];
    return known.size() == length && !std::memcmp(known.data(), word, length);
}

std::int32_t WordTable::find(std::string_view word) const {
    std::array<std::uint8_t, 16> room;
    return find(readable(word, room), word.size());
}

void WordTable::put(std::string_view word, std::int32_t id) {
    std::array<std::uint8_t, 16> room;
    const std::uint8_t* bytes = readable(word, room);
    const WordKey key(bytes, word.size());
    Slot& slot = slots_[index_of(key, bytes, word.size())];
    if (slot.id != kAbsent) return;
    slot = {key.first, key.rest, id};
    filter_.add(key.hash());
    if (word.size() <= WordKey::kWhole) return;
    const auto at = static_cast<std::size_t>(id);
    if (long_words_.size() <= at) long_words_.resize(at + 1);
    long_words_[at] = word;
}

}  // namespace toxicity
