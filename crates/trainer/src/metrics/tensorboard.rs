//! TensorBoard event files: scalars in the `Event` protobuf message, framed as TFRecords.
//!
//! Written here because the message needs three of its fields and the frame two checksums, while the crates that do it
//! bring a protobuf runtime and dozens of dependencies. Formats: `tensorflow/core/util/event.proto`,
//! `tensorflow/core/framework/summary.proto` and `tensorflow/core/lib/io/record_writer.h`.

use std::{
    fs::{File, OpenOptions},
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
    process,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};

/// An `events.out.tfevents.*` file open for appending.
#[derive(Debug)]
pub struct EventFile {
    path: PathBuf,
    file: File,
    /// Bytes of the records that are written.
    written: u64,
}

impl EventFile {
    /// Starts a new event file in `dir`. With `purge_from`, TensorBoard forgets what earlier files in `dir` say about
    /// that step and later ones, as a resumed run needs.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn create(dir: &Path, purge_from: Option<usize>) -> Result<Self> {
        let (path, file) = new_file(dir)?;
        let mut events = Self { path, file, written: 0 };
        events.write(&event(0, FILE_VERSION, b"brain.Event:2"))?;
        if let Some(step) = purge_from {
            // SessionLog { status: START }
            let mut session = Vec::new();
            varint_field(&mut session, 1, 1);
            events.write(&event(step, SESSION_LOG, &session))?;
        }
        Ok(events)
    }

    /// Appends one scalar a figure, as `section/key`, at `step`.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn scalars(&mut self, section: &str, step: usize, figures: &[(&str, f32)]) -> Result<()> {
        let mut summary = Vec::new();
        for (key, value) in figures {
            // Summary.Value { tag, simple_value }
            let mut scalar = Vec::new();
            bytes_field(&mut scalar, 1, format!("{section}/{key}").as_bytes());
            tag(&mut scalar, 2, FIXED32);
            scalar.extend(value.to_le_bytes());
            bytes_field(&mut summary, 1, &scalar);
        }
        self.write(&event(step, SUMMARY, &summary))
    }

    fn write(&mut self, data: &[u8]) -> Result<()> {
        let record = record(data);
        let written = self.file.write_all(&record).and_then(|()| self.file.flush());
        match &written {
            Ok(()) => self.written += record.len() as u64,
            // Half of a record would end the file for TensorBoard, whatever came after it.
            Err(_) => drop(self.file.set_len(self.written)),
        }
        written.with_context(|| format!("{}: cannot write", self.path.display()))
    }
}

/// Makes a file with a name of its own; TensorBoard reads the files of a folder in the order of their names.
fn new_file(dir: &Path) -> Result<(PathBuf, File)> {
    let seconds = now().as_secs();
    let mut count = 0_u64;
    loop {
        let path = dir.join(format!("events.out.tfevents.{seconds:010}.bellows.{}.{count}", process::id()));
        match OpenOptions::new().append(true).create_new(true).open(&path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => count += 1,
            opened => {
                let file = opened.with_context(|| format!("{}: cannot write", path.display()))?;
                return Ok((path, file));
            }
        }
    }
}

fn now() -> std::time::Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

// Protobuf wire types.
const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const BYTES: u64 = 2;
const FIXED32: u64 = 5;

// Fields of `Event`, of which one is set besides the time and the step.
const FILE_VERSION: u64 = 3;
const SUMMARY: u64 = 5;
const SESSION_LOG: u64 = 7;

/// `Event { wall_time, step, <field>: content }`.
fn event(step: usize, field: u64, content: &[u8]) -> Vec<u8> {
    let mut message = Vec::new();
    tag(&mut message, 1, FIXED64);
    message.extend(now().as_secs_f64().to_le_bytes());
    varint_field(&mut message, 2, step as u64);
    bytes_field(&mut message, field, content);
    message
}

/// A TFRecord: length, its checksum, data, its checksum; little-endian.
fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut framed = Vec::with_capacity(data.len() + 16);
    framed.extend(length);
    framed.extend(masked_crc(&length).to_le_bytes());
    framed.extend(data);
    framed.extend(masked_crc(data).to_le_bytes());
    framed
}

/// CRC-32C, rotated right by 15 bits plus a constant: TFRecord masks it because data may itself contain checksums.
fn masked_crc(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn tag(out: &mut Vec<u8>, field: u64, wire_type: u64) {
    varint(out, field << 3 | wire_type);
}

fn varint_field(out: &mut Vec<u8>, field: u64, value: u64) {
    tag(out, field, VARINT);
    varint(out, value);
}

fn bytes_field(out: &mut Vec<u8>, field: u64, content: &[u8]) {
    tag(out, field, BYTES);
    varint(out, content.len() as u64);
    out.extend(content);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints_carry_seven_bits_a_byte() {
        let mut out = Vec::new();
        varint(&mut out, 300);
        assert_eq!(out, [0b1010_1100, 0b10], "the example of the protobuf documentation");
    }

    #[test]
    fn the_checksum_is_the_masked_castagnoli_one() {
        // CRC-32C of "123456789" is e3069283; rotated right by 15 bits 2507c60d; plus a282ead8 it is c78ab0e5.
        assert_eq!(masked_crc(b"123456789"), 0xc78a_b0e5);
    }

    #[test]
    fn a_record_frames_its_data() {
        let framed = record(b"abc");
        assert_eq!(framed.len(), 8 + 4 + 3 + 4);
        assert_eq!((&framed[..8], &framed[12..15]), (&3u64.to_le_bytes()[..], &b"abc"[..]));
    }

    #[test]
    fn files_of_one_second_get_names_of_their_own() {
        let dir = tempfile::tempdir().unwrap();
        let first = EventFile::create(dir.path(), None).unwrap();
        let mut second = EventFile::create(dir.path(), Some(4)).unwrap();
        assert_ne!(first.path, second.path);
        second.scalars("train", 4, &[("reward", 0.5)]).unwrap();
        let bytes = std::fs::read(&second.path).unwrap();
        let needle = b"train/reward";
        let at = bytes.windows(needle.len()).position(|window| window == needle).unwrap() + needle.len();
        assert_eq!(bytes[at], 2 << 3 | 5, "field 2, four bytes");
        assert_eq!(bytes[at + 1..at + 5], 0.5f32.to_le_bytes());
    }
}
