// JavaScript clients with the same verbs as client_drivers.py, and run in the same way:
//     node client_drivers.mjs CLIENT '[["put", "file", "key"], ["list", "prefix"]]'
import { readFileSync, writeFileSync } from "node:fs";
import {
  CopyObjectCommand, DeleteObjectCommand, GetObjectCommand, HeadObjectCommand,
  ListObjectsV2Command, PutObjectCommand, S3Client,
} from "@aws-sdk/client-s3";
import { Upload } from "@aws-sdk/lib-storage";
import { getSignedUrl } from "@aws-sdk/s3-request-presigner";
import { S3mini } from "s3mini";

const { S3_ENDPOINT, S3_BUCKET, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_DEFAULT_REGION } =
  process.env;
const PART = 5 * 1024 ** 2; // bytes; small, so that our large file has several parts

class Sdk {
  constructor() {
    // forcePathStyle: without it every bucket would need a host name of its own.
    this.s3 = new S3Client({
      endpoint: S3_ENDPOINT, region: AWS_DEFAULT_REGION, forcePathStyle: true,
    });
  }

  send(Command, more) {
    return this.s3.send(new Command({ Bucket: S3_BUCKET, ...more }));
  }

  async put(file, key) {
    const params = { Bucket: S3_BUCKET, Key: key, Body: readFileSync(file) };
    await new Upload({ client: this.s3, params, partSize: PART }).done();
  }

  async get(key, file) {
    const { Body } = await this.send(GetObjectCommand, { Key: key });
    writeFileSync(file, await Body.transformToByteArray());
  }

  async size(key) {
    return (await this.send(HeadObjectCommand, { Key: key })).ContentLength;
  }

  async list(prefix) {
    const { Contents = [] } = await this.send(ListObjectsV2Command, { Prefix: prefix });
    return Contents.map((item) => item.Key);
  }

  async delete(key) {
    await this.send(DeleteObjectCommand, { Key: key });
  }

  async copy(source, key) {
    const CopySource = `${S3_BUCKET}/${encodeURIComponent(source)}`;
    await this.send(CopyObjectCommand, { Key: key, CopySource });
  }

  // A stream of unknown length: aws-chunked inside Transfer-Encoding: chunked, with a trailer.
  async stream(file, key) {
    const Body = new Blob([readFileSync(file)]).stream();
    await new Upload({ client: this.s3, params: { Bucket: S3_BUCKET, Key: key, Body } }).done();
  }

  // Presigned for a body not known yet: the query has the checksum of nothing.
  async putPresigned(key, text) {
    const command = new PutObjectCommand({ Bucket: S3_BUCKET, Key: key });
    const url = await getSignedUrl(this.s3, command, { expiresIn: 60 });
    return (await fetch(url, { method: "PUT", body: text })).status;
  }

  async getPresigned(key) {
    const command = new GetObjectCommand({ Bucket: S3_BUCKET, Key: key });
    return (await fetch(await getSignedUrl(this.s3, command, { expiresIn: 60 }))).text();
  }
}

class Mini {
  constructor() {
    this.s3 = new S3mini({
      accessKeyId: AWS_ACCESS_KEY_ID,
      secretAccessKey: AWS_SECRET_ACCESS_KEY,
      endpoint: `${S3_ENDPOINT}/${S3_BUCKET}`,
      minPartSize: PART,
    });
  }

  async put(file, key) {
    await this.s3.putAnyObject(key, readFileSync(file));
  }

  async get(key, file) {
    writeFileSync(file, Buffer.from(await this.s3.getObjectArrayBuffer(key)));
  }

  size(key) {
    return this.s3.getContentLength(key);
  }

  async list(prefix) {
    return ((await this.s3.listObjects("/", `${prefix}/`)) ?? []).map((item) => item.Key);
  }

  async delete(key) {
    await this.s3.deleteObject(key);
  }

  // A conditional read, and moving: CopyObject and DeleteObject.
  async moveIfChanged(source, key, etag) {
    if ((await this.s3.getObject(source, { "if-none-match": etag })) !== null) {
      await this.s3.moveObject(source, key);
    }
  }

  async deleteAll(keys) {
    return (await this.s3.deleteObjects(keys)).filter(Boolean).length;
  }
}

const driver = new { sdk: Sdk, mini: Mini }[process.argv[2]]();
const results = [];
for (const [verb, ...args] of JSON.parse(process.argv[3])) {
  results.push((await driver[verb](...args)) ?? null);
}
console.log(JSON.stringify(results));
