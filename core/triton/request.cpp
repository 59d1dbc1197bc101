#include "request.h"

#include <string>

#include "contract.h"
#include "errors.h"
#include "utf8.h"

namespace toxicity {

std::vector<std::string_view> decode_texts(std::string_view bytes, std::int64_t count) {
    if (count < 1 || count > MAX_REQUEST_COMMENTS)
        throw BadInput("the request has " + std::to_string(count) + " comments, expected 1 to " +
                       std::to_string(MAX_REQUEST_COMMENTS) + "; send fewer comments in a request");
    std::vector<std::string_view> texts;
    texts.reserve(static_cast<std::size_t>(count));
    std::size_t total = 0;
    for (std::int64_t row = 0; row < count; row++) {
        const auto named = [row] { return "comment " + std::to_string(row); };
        if (bytes.size() < 4)
            throw BadInput(named() + " is missing, expected " + std::to_string(count) +
                           " comments by the tensor's shape; send as many as the shape says");
        std::size_t length = 0;
        for (std::size_t i = 0; i < 4; i++)
            length |= static_cast<std::size_t>(static_cast<std::uint8_t>(bytes[i])) << 8 * i;
        bytes.remove_prefix(4);
        if (length > MAX_COMMENT_BYTES)
            throw BadInput(named() + " is " + std::to_string(length) + " bytes long, expected at most " +
                           std::to_string(MAX_COMMENT_BYTES) + "; cut it before sending");
        total += length;
        if (total > MAX_REQUEST_BYTES)
            throw BadInput("the request has more than " + std::to_string(MAX_REQUEST_BYTES) +
                           " bytes of text; send fewer comments in a request");
        if (length > bytes.size())
            throw BadInput(named() + " is said to be " + std::to_string(length) + " bytes long and has " +
                           std::to_string(bytes.size()) + "; send each comment whole");
        const std::string_view text = bytes.substr(0, length);
        const std::size_t bad = invalid_utf8_at(text);
        if (bad != kValid) {
            static constexpr char kHex[] = "0123456789abcdef";
            const auto byte = static_cast<std::uint8_t>(text[bad]);
            throw BadInput(named() + " is not valid UTF-8 (byte 0x" + kHex[byte >> 4] + kHex[byte & 15] +
                           " at " + std::to_string(bad) +
                           "), expected UTF-8 text; encode it as UTF-8 before sending");
        }
        texts.push_back(text);
        bytes.remove_prefix(length);
    }
    if (!bytes.empty())
        throw BadInput("the tensor has " + std::to_string(bytes.size()) +
                       " bytes behind its last comment; send as many as the shape says");
    return texts;
}

bool is_check(const std::vector<std::string_view>& texts) {
    constexpr std::string_view known = CHECK_COMMENT;
    if (texts.size() != 1 || texts[0].size() < known.size() + 2 || texts[0].substr(0, known.size()) != known)
        return false;
    const std::string_view time = texts[0].substr(known.size());
    return time[0] == ' ' && time.find_first_not_of("0123456789", 1) == std::string_view::npos;
}

}  // namespace toxicity
