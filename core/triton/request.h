// The comments of a request as they come: Triton's serialized BYTES tensor.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

namespace toxicity {

// `count` comments, each a length of 4 bytes, little-endian, and so many bytes of UTF-8. They lie in
// `bytes`. Throws BadInput that says which comment is wrong and why.
std::vector<std::string_view> decode_texts(std::string_view bytes, std::int64_t count);

// Whether a request of these comments only asks if this server scores, see CHECK_COMMENT.
bool is_check(const std::vector<std::string_view>& texts);

}  // namespace toxicity
