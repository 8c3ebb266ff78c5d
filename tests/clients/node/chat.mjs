// OpenAI's chat through its SDK for node.

import OpenAI from "openai";
import { FACT, carryOut, lookUp, model, prompt, url } from "./errand.mjs";

const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const asked = { model, messages: [{ role: "user", content: prompt }] };

await carryOut({
  async say() {
    const whole = await client.chat.completions.create(asked);
    const streamed = client.chat.completions.stream(asked);
    return [whole.choices[0].message.content, await streamed.finalContent()];
  },

  async leave() {
    const stream = await client.chat.completions.create({ ...asked, stream: true });
    for await (const chunk of stream) {
      if (chunk.choices[0]?.delta.content) break; // leaving the loop ends the request
    }
  },

  async use_tool() {
    const { schema, ...named } = lookUp;
    const called = { ...named, parameters: schema, parse: JSON.parse, function: () => FACT };
    const tools = [{ type: "function", function: called }];
    return await client.chat.completions.runTools({ ...asked, stream: true, tools }).finalContent();
  },
});
