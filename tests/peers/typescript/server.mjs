// A server with the TypeScript SDK.
import { Server } from '@modelcontextprotocol/sdk/server/index.js';
import { StdioServerTransport } from '@modelcontextprotocol/sdk/server/stdio.js';
import { CallToolRequestSchema, ListToolsRequestSchema } from '@modelcontextprotocol/sdk/types.js';

const text = (value) => ({ content: [{ type: 'text', text: value }] });
const tools = {
  echo: (args) => text(args.text),
  text: (args) => text('é'.repeat(args.size / 2)),
  length: (args) => text(String(Buffer.byteLength(args.text))),
  fail: () => ({ ...text('failed'), isError: true }),
  image: (args) => ({ content: [{ type: 'image', mimeType: 'image/png', data: Buffer.alloc(args.size, 7).toString('base64') }] }),
  // Text between messages, as careless servers write it.
  noise: (args) => {
    for (let line = 0; line < args.lines; line++) console.log(`${line}: {"not": "a message", [`);
    return text('noisy');
  },
  ask: async () => {
    const { roots } = await server.listRoots();
    const answer = await server.createMessage({
      messages: [{ role: 'user', content: { type: 'text', text: 'hello?' } }],
      maxTokens: 10,
    });
    return text(`${roots.length} ${answer.content.text}`);
  },
};

const server = new Server({ name: 'typescript-peer', version: '1.2.3' }, { capabilities: { tools: {} } });
server.setRequestHandler(ListToolsRequestSchema, () => ({
  tools: Object.keys(tools).map((name) => ({ name, inputSchema: { type: 'object' } })),
}));
server.setRequestHandler(CallToolRequestSchema, ({ params }) => tools[params.name](params.arguments ?? {}));

for (let line = 0; line < Number(process.env.MCPSPY_NOISE ?? 0); line++) console.log(`${line}: starting {`);
const transport = new StdioServerTransport(process.stdin, process.stdout, { maxBufferSize: 64 << 20 });
transport.onerror = () => {};
await server.connect(transport);
process.stdin.on('end', () => process.exit(0));
