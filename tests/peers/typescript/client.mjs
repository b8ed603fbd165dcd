// A client with the TypeScript SDK: `client.mjs SCENARIO COMMAND [ARGS...]`
import { Client } from '@modelcontextprotocol/sdk/client/index.js';
import { StdioClientTransport } from '@modelcontextprotocol/sdk/client/stdio.js';
import { CreateMessageRequestSchema, ListRootsRequestSchema } from '@modelcontextprotocol/sdk/types.js';

const [scenario, command, ...args] = process.argv.slice(2);

async function connect() {
  const env = { ...process.env, MCPSPY_END: 'server' };
  const transport = new StdioClientTransport({ command, args, env, maxBufferSize: 64 << 20 });
  const client = new Client({ name: 'typescript-client', version: '3.2.1' }, { capabilities: { roots: {}, sampling: {} } });
  client.setRequestHandler(ListRootsRequestSchema, () => ({ roots: [{ uri: 'file:///srv' }] }));
  client.setRequestHandler(CreateMessageRequestSchema, () => ({
    role: 'assistant', model: 'none', content: { type: 'text', text: 'four' },
  }));
  await client.connect(transport);
  return client;
}

const call = (client, name, args, onprogress) =>
  client.callTool({ name, arguments: args }, undefined, { onprogress, timeout: 120_000 });

async function one(session) {
  const client = await connect();
  await client.listTools();
  for (let n = 0; n < 3; n++) await call(client, 'echo', { text: `session ${session} call ${n}` });
  await client.close();
}

const scenarios = {
  async basic() {
    const client = await connect();
    await client.listTools();
    await call(client, 'echo', { text: 'é, 👋, \u2028, "quoted"' });
    await call(client, 'fail', {});
    await call(client, 'ask', {});
    await client.ping();
    await client.listPrompts().then(() => { throw new Error('no error'); }, () => {});
    await call(client, 'noise', { lines: 3 });
    await call(client, 'echo', { text: 'after the noise' });
    await client.close();
  },
  async big() {
    const client = await connect();
    const sizes = [2, 4096, 65536, 1 << 20, (16 << 20) - 2048, (16 << 20) - 2048];
    for (const size of sizes) await call(client, 'text', { size });
    for (const size of sizes) await call(client, 'length', { text: 'y'.repeat(size) });
    await call(client, 'image', { size: 3_750_000 });
    await client.close();
  },
  async burst() {
    const client = await connect();
    await Promise.all(Array.from({ length: 2000 }, (_, n) => call(client, 'echo', { text: `call ${n}` })));
    await client.close();
  },
  many: () => Promise.all(Array.from({ length: 50 }, (_, session) => one(session))),
  async everything() {
    const client = await connect();
    await client.listTools();
    await call(client, 'echo', { message: 'hello' });
    await call(client, 'get-tiny-image', {});
    await call(client, 'trigger-long-running-operation', { duration: 1, steps: 4 }, () => {});
    const { resources } = await client.listResources();
    await client.readResource({ uri: resources[0].uri });
    const { prompts } = await client.listPrompts();
    await client.getPrompt({ name: prompts[0].name });
    await client.setLoggingLevel('debug');
    await client.close();
  },
  async filesystem() {
    const client = await connect();
    const directory = args[args.length - 1];
    await client.listTools();
    await call(client, 'write_file', { path: `${directory}/a.txt`, content: 'ünïcode\n'.repeat(10_000) });
    await call(client, 'read_text_file', { path: `${directory}/a.txt` });
    await call(client, 'list_directory', { path: directory });
    await call(client, 'read_text_file', { path: '/etc/shadow' });
    await client.close();
  },
};

await scenarios[scenario]();
