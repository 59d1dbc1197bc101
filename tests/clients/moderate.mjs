// The official client, unchanged but for its address: `node moderate.mjs ADDRESS TEXT...`.
import OpenAI from "openai";

const [address, ...texts] = process.argv.slice(2);
const client = new OpenAI({ apiKey: "none", baseURL: `${address}/v1`, maxRetries: 0 });
const answer = await client.moderations.create({ model: "omni-moderation-latest", input: texts });
let refused = null;
try {
  await client.moderations.create({ input: [] });
} catch (error) {
  refused = { name: error.constructor.name, status: error.status, type: error.type };
}
console.log(JSON.stringify({ answer, refused }));
