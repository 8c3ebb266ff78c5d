// Anthropic's messages through its SDK for node.

import Anthropic from "@anthropic-ai/sdk";
import { FACT, carryOut, lookUp, model, prompt, url } from "./errand.mjs";

const client = new Anthropic({ baseURL: url, apiKey: "none", maxRetries: 0 });
const asked = { model, max_tokens: 1000, messages: [{ role: "user", content: prompt }] };
const textOf = (message) =>
  message.content.flatMap((block) => (block.type === "text" ? [block.text] : [])).join("");

await carryOut({
  async say() {
    const whole = await client.messages.create(asked);
    const streamed = await client.messages.stream(asked).finalMessage();
    return [textOf(whole), textOf(streamed)];
  },

  async leave() {
    const stream = await client.messages.create({ ...asked, stream: true });
    for await (const event of stream) {
      if (event.type === "content_block_delta") break; // leaving the loop ends the request
    }
  },

  async use_tool() {
    const { schema, ...named } = lookUp;
    const tools = [{ ...named, input_schema: schema }];
    const first = await client.messages.stream({ ...asked, tools }).finalMessage();
    const results = first.content
      .filter((block) => block.type === "tool_use")
      .map((use) => ({ type: "tool_result", tool_use_id: use.id, content: FACT }));
    const said = { role: "assistant", content: first.content };
    const messages = [...asked.messages, said, { role: "user", content: results }];
    return textOf(await client.messages.create({ ...asked, tools, messages }));
  },

  async run_tools() {
    const { schema, ...named } = lookUp;
    const tools = [{ ...named, input_schema: schema, parse: (input) => input, run: () => FACT }];
    return textOf(await client.beta.messages.toolRunner({ ...asked, tools }).runUntilDone());
  },
});
