// Small tokenizer files for the fuzz targets.
#pragma once

#include <string>

namespace toxicity {

inline std::string tokenizer_json(bool respelling, const char* words, int max_len) {
    std::string json = R"({"format_version":2,"unicode_version":"14.0.0","max_len":)";
    json += std::to_string(max_len);
    json += R"(,"fold_from":"ABCDEFGHIJKLMNOPQRSTUVWXYZ\u00c9\uff21\u0130","fold_to":)"
            R"("abcdefghijklmnopqrstuvwxyz\u00e9ai","deleted":[173,8203,8205],)"
            R"("word":[[48,57],[65,90],[97,122],[192,214],[216,246],[248,767],[768,879],[880,1023],)"
            R"([1024,1327],[19968,40959],[65296,65305],[65313,65338],[65345,65370]],)"
            R"("space":[[0,32],[127,160],[5760,5760],[8192,8202],[8232,8233],[12288,12288],)"
            R"([55296,57343]],"respelling":)";
    json += respelling ? R"({"lookalikes":"013457$@!","readings":["oieastsai","oleastsal"],)"
                         R"("mask":"*","pieces":4})"
                       : "null";
    return json + R"(,"vocabulary":["[PAD]","[UNK]","[CLS]",)" + words + "]}";
}

inline const char* kWords =
    R"("the","you","are","a","i","idiot","stupid","shit","fuck","ball","balls","kind","ass","hell",)"
    R"("hello","é","пример","中","!","*","$",".",",","1","0","word","words","you are","stupid idiot")";

}  // namespace toxicity
