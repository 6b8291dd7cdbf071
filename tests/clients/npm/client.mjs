// Asks the service at the base URL given as the first argument, and prints what it learns: one JSON object a line.
import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

const client = new OpenAI({ baseURL: process.argv[2], apiKey: "any", maxRetries: 0, timeout: 20_000 });
const say = (step, found) => console.log(JSON.stringify({ step, ...found }));
const asking = (content) => ({ model: "helper", messages: [{ role: "user", content }] });

const models = [];
for await (const model of client.models.list()) models.push(model.id);
say("models", { models });

const pieces = [];
let usage = null;
const stream = await client.chat.completions.create({ ...asking("stream"), stream: true, stream_options: { include_usage: true } });
for await (const chunk of stream) {
  if (chunk.choices[0]?.delta?.content) pieces.push(chunk.choices[0].delta.content);
  usage = chunk.usage ?? usage;
}
say("stream", { pieces, total_tokens: usage?.total_tokens });

const runner = client.chat.completions.runTools({
  ...asking("tools"),
  stream: true,
  tools: [
    {
      type: "function",
      function: {
        name: "weather",
        description: "The weather in a city.",
        parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
        parse: JSON.parse,
        function: ({ city }) => `sunny in ${city}`,
      },
    },
  ],
});
const called = [];
runner.on("functionToolCall", (call) => called.push([call.name, call.arguments]));
say("tools", { text: await runner.finalContent(), called });

const Person = z.object({ name: z.string(), age: z.number() });
const parsed = await client.chat.completions.parse({ ...asking("structured"), response_format: zodResponseFormat(Person, "person") });
say("structured", { person: parsed.choices[0].message.parsed });

try {
  await client.chat.completions.create({ ...asking("error"), model: "nobody" });
} catch (error) {
  say("error", { kind: error.constructor.name, status: error.status, code: error.code, has_request_id: Boolean(error.requestID) });
}

const half = [];
try {
  for await (const chunk of await client.chat.completions.create({ ...asking("breaks"), stream: true })) {
    half.push(chunk.choices[0].delta.content);
  }
} catch (error) {
  say("broken stream", { half, kind: error.constructor.name, code: error.code });
}
