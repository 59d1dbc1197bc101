#include "word_table.h"

#include <cstring>

namespace toxicity {

void WordTable::reserve(std::size_t words) {
    std::size_t size = 64;
    while (size < 3 * words) size *= 2;
    slots_.assign(size, Slot());
    mask_ = size - 1;
}

std::size_t WordTable::index_of(const std::uint8_t* word, std::size_t length,
                                std::uint32_t hash) const {
    for (std::size_t i = (hash ^ hash >> 15) & mask_;; i = (i + 1) & mask_) {
        const Slot& slot = slots_[i];
        if (slot.id == kAbsent) return i;
        if (slot.hash == hash && slot.length == length &&
            !std::memcmp(bytes_.data() + slot.start, word, length))
            return i;
    }
}

void WordTable::put(std::string_view word, std::int32_t id) {
    const auto* bytes = reinterpret_cast<const std::uint8_t*>(word.data());
    const std::uint32_t hash = hash_of(bytes, word.size());
    Slot& slot = slots_[index_of(bytes, word.size(), hash)];
    if (slot.id != kAbsent) return;
    slot = {hash, static_cast<std::uint32_t>(word.size()), static_cast<std::uint32_t>(bytes_.size()),
            id};
    bytes_ += word;
    filter_.add(hash);
}

}  // namespace toxicity
