// What the three scripts share: the verb to carry out, and the tool that a model may call.
//
//   node chat.mjs say URL MODEL PROMPT        the answer at once and streamed, as JSON
//   node chat.mjs leave URL MODEL PROMPT      goes after the first word of a stream
//   node chat.mjs use_tool URL MODEL PROMPT   lets the model look up FACT; prints how it ends
//   node messages.mjs run_tools ...           the same by the SDK's own loop

export const [verb, url, model, prompt] = process.argv.slice(2);

export const FACT = "The harbour gate opens at seven.";

export const lookUp = {
  name: "look_up",
  description: "Look something up",
  schema: {
    type: "object",
    properties: { topic: { type: "string" } },
    required: ["topic"],
    additionalProperties: false,
  },
};

/** Carry out the verb and print what comes of it; who fails says why and has a bad status. */
export async function carryOut(verbs) {
  console.log(JSON.stringify((await verbs[verb]()) ?? null));
}
