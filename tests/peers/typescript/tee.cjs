// Ground truth for any Node program, as in ../python/tee.py. Loaded with --require, so that the
// SDK and the public servers run unchanged: it wraps child_process.spawn (clients) and the standard
// streams (servers, when MCPSPY_END=server).
'use strict';
const childProcess = require('node:child_process');
const fs = require('node:fs');

const truth = process.env.MCPSPY_TRUTH;
let number = 0;

function logTo(end, kind) {
  const fd = fs.openSync(`${truth}/${end}.${kind}`, 'a');
  return (bytes) => fs.writeSync(fd, bytes);
}

/** Logs what is handed to a writable stream. */
function teeWrites(stream, log) {
  const write = stream.write;
  stream.write = function (chunk, encoding, ...rest) {
    log(typeof chunk === 'string' ? Buffer.from(chunk, typeof encoding === 'string' ? encoding : 'utf8') : chunk);
    return write.call(this, chunk, encoding, ...rest);
  };
}

/** Logs what a readable stream brings, at the moment it enters the stream. */
function teeReads(stream, log) {
  const push = stream.push;
  stream.push = function (chunk, ...rest) {
    if (chunk) log(chunk);
    return push.call(this, chunk, ...rest);
  };
}

if (truth && process.env.MCPSPY_END === 'server') {
  const end = `server-${process.pid}-0`;
  teeReads(process.stdin, logTo(end, 'received'));
  teeWrites(process.stdout, logTo(end, 'sent'));
} else if (truth) {
  const spawn = childProcess.spawn;
  childProcess.spawn = function (...args) {
    const child = spawn.apply(this, args);
    const end = `client-${process.pid}-${number++}`;
    fs.writeFileSync(`${truth}/${end}.child`, String(child.pid));
    teeWrites(child.stdin, logTo(end, 'sent'));
    teeReads(child.stdout, logTo(end, 'received'));
    return child;
  };
}
