//! Records of ranges that differ, on disk until they are compared: as many as there are, in little memory.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Read as _, Write as _};
use std::path::PathBuf;

use prost::Message as _;

use crate::domain::plain::RANGES;
use crate::proto::RecordDigest;

/// Parts that are compared one after the other.
pub const PARTS: usize = 256;
/// Bytes of a part that are gathered before they are written.
const GATHERED: usize = 64 * 1024;

/// The records of one side.
pub struct Spill {
    folder: tempfile::TempDir,
    gathered: Vec<Vec<u8>>,
}

impl Spill {
    pub fn new() -> io::Result<Spill> {
        let folder = tempfile::Builder::new().prefix("stepwell-verify-").tempdir()?;
        Ok(Spill { folder, gathered: vec![Vec::new(); PARTS] })
    }

    fn path(&self, part: usize) -> PathBuf {
        self.folder.path().join(part.to_string())
    }

    pub fn add(&mut self, range: usize, record: &RecordDigest) -> io::Result<()> {
        let part = range / (RANGES / PARTS);
        let gathered = &mut self.gathered[part];
        gathered.extend((record.encoded_len() as u32).to_le_bytes());
        record.encode(gathered).map_err(io::Error::other)?;
        if gathered.len() >= GATHERED { self.write(part) } else { Ok(()) }
    }

    fn write(&mut self, part: usize) -> io::Result<()> {
        let gathered = std::mem::take(&mut self.gathered[part]);
        let file = OpenOptions::new().create(true).append(true).open(self.path(part));
        file?.write_all(&gathered)
    }

    /// Everything anew.
    pub fn clear(&mut self) -> io::Result<()> {
        self.gathered.iter_mut().for_each(Vec::clear);
        for part in 0..PARTS {
            match std::fs::remove_file(self.path(part)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// The records of one part.
    pub fn part(&mut self, part: usize) -> io::Result<Vec<RecordDigest>> {
        self.write(part)?;
        let mut file = BufReader::new(File::open(self.path(part))?);
        let mut records = Vec::new();
        let mut length = [0; 4];
        loop {
            match file.read_exact(&mut length) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(records),
                Err(error) => return Err(error),
            }
            let mut bytes = vec![0; u32::from_le_bytes(length) as usize];
            file.read_exact(&mut bytes)?;
            records.push(RecordDigest::decode(bytes.as_slice()).map_err(io::Error::other)?);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_added_is_found_in_its_part() {
        let mut spill = Spill::new().expect("a folder");
        let record = |n: usize| RecordDigest {
            execution_id: format!("run-{n}"),
            digest: vec![7; 32],
            ..Default::default()
        };
        for n in 0..5000 {
            spill.add(n % RANGES, &record(n)).expect("added");
        }
        let mut found = 0;
        for part in 0..PARTS {
            let records = spill.part(part).expect("records");
            for record in &records {
                let n: usize = record.execution_id[4..].parse().expect("a number");
                assert_eq!(n % RANGES / (RANGES / PARTS), part);
            }
            found += records.len();
        }
        assert_eq!(found, 5000);
        spill.clear().expect("cleared");
        assert!((0..PARTS).all(|part| spill.part(part).expect("records").is_empty()));
    }
}
