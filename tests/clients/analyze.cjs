// A client whose address is fixed; axios, by which it sends, is told another one:
// `node analyze.cjs ADDRESS TEXT`.
const axios = require("axios");
const Perspective = require("perspective-api-client");

const [address, text] = process.argv.slice(2);
axios.interceptors.request.use((config) => {
  config.url = config.url.replace("https://commentanalyzer.googleapis.com", address);
  return config;
});

(async () => {
  const client = new Perspective({ apiKey: "none" });
  const answer = await client.analyze(text, { attributes: ["toxicity"] });
  let refused = null;
  try {
    await client.analyze(text, { attributes: ["insult"] });
  } catch (error) {
    refused = { name: error.name, message: error.message, status: error.response.status };
  }
  console.log(JSON.stringify({ answer, refused }));
})();
