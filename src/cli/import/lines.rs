//! Lines of a file, plain or gzipped, split on `\n` only and bounded in length.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flate2::bufread::MultiGzDecoder;

/// Longest line that is read. A stored document is at most 16 MiB, too.
pub const LINE_BYTES: usize = 16 * 1024 * 1024;
const BUFFER_BYTES: usize = 128 * 1024;
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// One line that is not blank, numbered from 1.
#[derive(Debug, PartialEq, Eq)]
pub enum Line<'a> {
    Text {
        number: u64,
        text: &'a [u8],
    },
    /// Skipped without being held in memory.
    TooLong {
        number: u64,
        bytes: u64,
    },
}

/// Reads a file line by line.
pub struct Lines {
    reader: Box<dyn BufRead + Send>,
    buffer: Vec<u8>,
    number: u64,
    consumed: Arc<AtomicU64>,
}

/// Counts the bytes read from disk.
struct Counted {
    file: File,
    bytes: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.bytes.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

impl Lines {
    pub fn open(path: &Path) -> io::Result<Self> {
        let consumed = Arc::new(AtomicU64::new(0));
        let counted = Counted { file: File::open(path)?, bytes: Arc::clone(&consumed) };
        let mut file = BufReader::with_capacity(BUFFER_BYTES, counted);
        // By its first bytes, as names lie.
        let gzipped = file.fill_buf()?.starts_with(&[0x1f, 0x8b]);
        let reader: Box<dyn BufRead + Send> = if gzipped {
            Box::new(BufReader::with_capacity(BUFFER_BYTES, MultiGzDecoder::new(file)))
        } else {
            Box::new(file)
        };
        Ok(Lines { reader, buffer: Vec::new(), number: 0, consumed })
    }

    /// Bytes read from disk so far.
    pub fn consumed(&self) -> u64 {
        self.consumed.load(Ordering::Relaxed)
    }

    /// The number of the last line returned.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The next line that is not blank; without its line break.
    pub fn next(&mut self) -> io::Result<Option<Line<'_>>> {
        loop {
            self.buffer.clear();
            let bytes = self.read_line()?;
            if bytes == 0 {
                return Ok(None);
            }
            self.number += 1;
            if bytes > LINE_BYTES as u64 {
                return Ok(Some(Line::TooLong { number: self.number, bytes }));
            }
            let mut start = 0;
            if self.number == 1 && self.buffer.starts_with(BYTE_ORDER_MARK) {
                start = BYTE_ORDER_MARK.len();
            }
            let blank = self.buffer[start..].iter().all(u8::is_ascii_whitespace);
            if !blank {
                let number = self.number;
                return Ok(Some(Line::Text { number, text: self.buffer[start..].trim_ascii() }));
            }
        }
    }

    /// Reads to the next `\n` or the end; keeps at most `LINE_BYTES`. The length of it all, with its break.
    fn read_line(&mut self) -> io::Result<u64> {
        let mut bytes = 0_u64;
        loop {
            let available = match self.reader.fill_buf() {
                Ok(available) => available,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if available.is_empty() {
                return Ok(bytes);
            }
            let end = available.iter().position(|byte| *byte == b'\n');
            let taken = end.map_or(available.len(), |end| end + 1);
            if bytes + taken as u64 <= LINE_BYTES as u64 {
                self.buffer.extend_from_slice(&available[..taken]);
            } else {
                self.buffer = Vec::new();
            }
            bytes += taken as u64;
            self.reader.consume(taken);
            if end.is_some() {
                return Ok(bytes);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    fn texts(content: &[u8]) -> Vec<(u64, Option<String>)> {
        let mut file = tempfile::NamedTempFile::new().expect("a temp file");
        file.write_all(content).expect("written");
        let mut lines = Lines::open(file.path()).expect("opened");
        let mut found = Vec::new();
        while let Some(line) = lines.next().expect("read") {
            found.push(match line {
                Line::Text { number, text } => {
                    (number, Some(String::from_utf8_lossy(text).into_owned()))
                }
                Line::TooLong { number, .. } => (number, None),
            });
        }
        found
    }

    fn text(number: u64, text: &str) -> (u64, Option<String>) {
        (number, Some(text.to_owned()))
    }

    #[test]
    fn lines_end_at_line_feeds_only() {
        assert_eq!(
            texts("a\u{2028}b\u{85}\x0bc\nd".as_bytes()),
            [text(1, "a\u{2028}b\u{85}\x0bc"), text(2, "d")]
        );
        assert_eq!(texts(b""), []);
        assert_eq!(texts(b"\n"), []);
    }

    #[test]
    fn marks_blank_lines_and_carriage_returns_are_no_documents_but_count() {
        assert_eq!(texts(b"\xef\xbb\xbf{}\r\n\r\n  \n{}\r\n"), [text(1, "{}"), text(4, "{}")]);
        assert_eq!(texts(b"\xef\xbb\xbf\n{}"), [text(2, "{}")]);
    }

    #[test]
    fn a_line_that_is_too_long_is_skipped_and_the_next_one_read() {
        let mut content = vec![b'x'; LINE_BYTES + 10];
        content.extend_from_slice(b"\nnext\n");
        assert_eq!(texts(&content), [(1, None), text(2, "next")]);
    }

    #[test]
    fn gzip_is_known_by_its_content_and_may_have_several_members() {
        let gzip = |content: &[u8]| {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
            encoder.write_all(content).expect("compressed");
            encoder.finish().expect("compressed")
        };
        let mut content = gzip(b"a\nb");
        content.extend(gzip(b"c\nd\n"));
        assert_eq!(texts(&content), [text(1, "a"), text(2, "bc"), text(3, "d")]);
    }

    #[test]
    fn a_file_cut_short_is_an_error_after_its_whole_lines() {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::none());
        encoder.write_all(b"a\nb\n").expect("compressed");
        let mut content = encoder.finish().expect("compressed");
        content.truncate(content.len() - 10);
        let mut file = tempfile::NamedTempFile::new().expect("a temp file");
        file.write_all(&content).expect("written");
        let mut lines = Lines::open(file.path()).expect("opened");
        let mut whole = 0;
        let error = loop {
            match lines.next() {
                Ok(Some(_)) => whole += 1,
                Ok(None) => panic!("read to the end"),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        assert!(whole <= 2);
    }
}
