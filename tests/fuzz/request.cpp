// Any bytes as the tensor of a request: refused with BadInput, or comments that lie within it.
#include <cstdlib>

#include "contract.h"
#include "errors.h"
#include "request.h"
#include "utf8.h"

using namespace toxicity;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    if (size < 2) return 0;
    const std::int64_t count = static_cast<std::int64_t>(data[0] << 8 | data[1]) % 300 - 20;
    const std::string_view bytes(reinterpret_cast<const char*>(data) + 2, size - 2);
    try {
        const auto texts = decode_texts(bytes, count);
        if (static_cast<std::int64_t>(texts.size()) != count) std::abort();
        std::size_t total = 0;
        for (const std::string_view text : texts) {
            if (text.size() > static_cast<std::size_t>(MAX_COMMENT_BYTES)) std::abort();
            if (!text.empty() && (text.data() < bytes.data() || text.data() + text.size() > bytes.data() + bytes.size()))
                std::abort();
            if (invalid_utf8_at(text) != kValid) std::abort();
            total += text.size() + 4;
        }
        if (total != bytes.size()) std::abort();
    } catch (const BadInput&) {
    }
    return 0;
}
