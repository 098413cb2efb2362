// Embed prepared pixels with onnxruntime-node:
//   node node.mjs PACKAGES MODEL PIXELS SIDE BATCH... > VECTORS
// PACKAGES is where npm installed, PIXELS holds (N, SIDE, SIDE, 3) uint8. The first images are embedded once for
// each batch size; the vectors, float32, come out one batch after the other.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const [packages, model, file, side, ...batches] = process.argv.slice(2);
const ort = createRequire(`${packages}/`)("onnxruntime-node");
const pixels = new Uint8Array(readFileSync(file));
const session = await ort.InferenceSession.create(model);
for (const batch of batches.map(Number)) {
  const shape = [batch, +side, +side, 3];
  const images = new ort.Tensor("uint8", pixels.subarray(0, batch * side * side * 3), shape);
  const found = (await session.run({ [session.inputNames[0]]: images }))[session.outputNames[0]];
  process.stdout.write(new Uint8Array(found.data.buffer, found.data.byteOffset, found.data.byteLength));
}
