// OpenAI's responses through its SDK for node.

import OpenAI from "openai";
import { FACT, carryOut, lookUp, model, prompt, url } from "./errand.mjs";

const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const asked = { model, input: [{ role: "user", content: prompt }], store: false };

await carryOut({
  async say() {
    const whole = await client.responses.create(asked);
    const streamed = await client.responses.stream(asked).finalResponse();
    return [whole.output_text, streamed.output_text];
  },

  async leave() {
    const stream = await client.responses.create({ ...asked, stream: true });
    for await (const event of stream) {
      if (event.type === "response.output_text.delta") break; // leaving the loop ends the request
    }
  },

  async use_tool() {
    const { schema, ...named } = lookUp;
    const tools = [{ type: "function", ...named, parameters: schema, strict: true }];
    const first = await client.responses.stream({ ...asked, tools }).finalResponse();
    const results = first.output
      .filter((item) => item.type === "function_call")
      .map((call) => ({ type: "function_call_output", call_id: call.call_id, output: FACT }));
    const input = [...asked.input, ...first.output, ...results];
    const last = await client.responses.stream({ ...asked, input, tools }).finalResponse();
    return last.output_text;
  },
});
