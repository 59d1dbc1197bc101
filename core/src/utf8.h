// UTF-8: checked once at the door, then decoded without surprises.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

namespace toxicity {

constexpr std::size_t kValid = static_cast<std::size_t>(-1);

// Byte at which the first malformed sequence begins, or kValid. Surrogates are malformed unless
// `surrogates` (Python's "surrogatepass", for texts that never were UTF-8).
inline std::size_t invalid_utf8_at(std::string_view text, bool surrogates = false) {
    const auto* bytes = reinterpret_cast<const std::uint8_t*>(text.data());
    const std::size_t size = text.size();
    for (std::size_t i = 0; i < size;) {
        std::uint64_t eight;
        if (i + 8 <= size && (std::memcpy(&eight, bytes + i, 8), !(eight & 0x8080808080808080u))) {
            i += 8;
            continue;
        }
        const std::uint8_t lead = bytes[i];
        if (lead < 0x80) {
            i++;
            continue;
        }
        const std::size_t more = lead >= 0xF0 ? 3 : lead >= 0xE0 ? 2 : 1;
        if (lead < 0xC2 || lead > 0xF4 || more >= size - i) return i;
        // The second byte rules out overlong forms, surrogates and what lies beyond U+10FFFF.
        std::uint8_t least = 0x80, most = 0xBF;
        if (lead == 0xE0) least = 0xA0;
        if (lead == 0xED && !surrogates) most = 0x9F;
        if (lead == 0xF0) least = 0x90;
        if (lead == 0xF4) most = 0x8F;
        if (bytes[i + 1] < least || bytes[i + 1] > most) return i;
        for (std::size_t k = 2; k <= more; k++)
            if ((bytes[i + k] & 0xC0) != 0x80) return i;
        i += more + 1;
    }
    return kValid;
}

// Code point at `at`, which moves behind it. The text was found valid, surrogates allowed; a cut
// sequence is read no further than `end` all the same.
inline std::uint32_t decode_utf8(const std::uint8_t*& at, const std::uint8_t* end) {
    const std::uint8_t lead = *at++;
    if (lead < 0x80) return lead;
    const int more = lead >= 0xF0 ? 3 : lead >= 0xE0 ? 2 : 1;
    std::uint32_t point = lead & (0x3Fu >> more);
    for (int i = 0; i < more && at < end; i++) point = point << 6 | (*at++ & 0x3Fu);
    return point < 0x110000 ? point : 0xFFFD;
}

// Writes up to four bytes and gives what is behind them.
inline std::uint8_t* encode_utf8(std::uint32_t point, std::uint8_t* out) {
    if (point < 0x80) {
        *out++ = static_cast<std::uint8_t>(point);
    } else if (point < 0x800) {
        *out++ = static_cast<std::uint8_t>(0xC0 | point >> 6);
        *out++ = static_cast<std::uint8_t>(0x80 | (point & 0x3F));
    } else if (point < 0x10000) {
        *out++ = static_cast<std::uint8_t>(0xE0 | point >> 12);
        *out++ = static_cast<std::uint8_t>(0x80 | (point >> 6 & 0x3F));
        *out++ = static_cast<std::uint8_t>(0x80 | (point & 0x3F));
    } else {
        *out++ = static_cast<std::uint8_t>(0xF0 | point >> 18);
        *out++ = static_cast<std::uint8_t>(0x80 | (point >> 12 & 0x3F));
        *out++ = static_cast<std::uint8_t>(0x80 | (point >> 6 & 0x3F));
        *out++ = static_cast<std::uint8_t>(0x80 | (point & 0x3F));
    }
    return out;
}

inline void append_utf8(std::uint32_t point, std::string& out) {
    std::uint8_t bytes[4];
    out.append(reinterpret_cast<const char*>(bytes),
               static_cast<std::size_t>(encode_utf8(point, bytes) - bytes));
}

}  // namespace toxicity
