//! The bytes of the artifacts: made piece by piece as they are sent, different for every artifact, and of no use to
//! anything that compresses.

use std::sync::Arc;

use bytes::Bytes;

/// Bytes of every piece but the last one.
pub const PIECE_BYTES: usize = 1024 * 1024;
const WORD_BYTES: usize = 8;

/// What all pieces are made of.
#[derive(Debug, Clone)]
pub struct Source {
    block: Arc<[u64]>,
    seed: u64,
}

/// A number that looks random; another one for every other number (SplitMix64).
fn mixed(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

impl Source {
    pub fn new(seed: u64) -> Self {
        let words = (PIECE_BYTES / WORD_BYTES) as u64;
        Source { block: (0..words).map(|word| mixed(seed.wrapping_add(word))).collect(), seed }
    }

    /// The bytes of artifact number `artifact`.
    pub fn pieces(&self, artifact: u32, size: u64) -> Pieces {
        Pieces { source: self.clone(), artifact, size, left: size, next: 0 }
    }

    /// The block with every word changed in the same way, another way for every piece of every artifact.
    fn piece(&self, artifact: u32, piece: u32, length: usize) -> Bytes {
        let key = mixed(self.seed ^ (u64::from(artifact) << 32 | u64::from(piece)));
        let mut bytes = vec![0; PIECE_BYTES];
        for (bytes, word) in bytes.chunks_exact_mut(WORD_BYTES).zip(self.block.iter()) {
            bytes.copy_from_slice(&(word ^ key).to_le_bytes());
        }
        bytes.truncate(length);
        Bytes::from(bytes)
    }
}

/// The bytes of one artifact, in order.
#[derive(Debug, Clone)]
pub struct Pieces {
    source: Source,
    artifact: u32,
    size: u64,
    left: u64,
    next: u32,
}

impl Pieces {
    /// Which artifact.
    pub fn artifact(&self) -> u32 {
        self.artifact
    }

    /// Bytes of all pieces together.
    pub fn size(&self) -> u64 {
        self.size
    }
}

impl Iterator for Pieces {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        if self.left == 0 {
            return None;
        }
        let length = usize::try_from(self.left).unwrap_or(PIECE_BYTES).min(PIECE_BYTES);
        let piece = self.source.piece(self.artifact, self.next, length);
        self.left -= length as u64;
        self.next += 1;
        Some(piece)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::io::Write as _;

    use super::*;

    #[test]
    fn an_artifact_has_the_bytes_that_it_is_said_to_have() {
        let source = Source::new(7);
        let piece = PIECE_BYTES as u64;
        for size in [0, 1, piece - 1, piece, piece + 1, 3 * piece + 5] {
            let lengths: Vec<usize> = source.pieces(0, size).map(|piece| piece.len()).collect();
            assert_eq!(lengths.iter().sum::<usize>() as u64, size);
            assert_eq!(lengths.len() as u64, size.div_ceil(piece));
            assert!(lengths.iter().rev().skip(1).all(|length| *length == PIECE_BYTES));
        }
    }

    #[test]
    fn no_piece_is_like_another_and_the_same_one_is_always_the_same() {
        let source = Source::new(7);
        let mut seen = HashSet::new();
        for artifact in [0, 1, 2, u32::MAX] {
            for piece in source.pieces(artifact, 3 * PIECE_BYTES as u64) {
                // Not even where a piece begins.
                assert!(seen.insert(piece[..WORD_BYTES].to_vec()), "artifact {artifact}");
            }
        }
        assert!(source.pieces(5, 9).eq(Source::new(7).pieces(5, 9)));
        assert!(source.pieces(5, 9).ne(Source::new(8).pieces(5, 9)));
    }

    #[test]
    fn nothing_gets_smaller_by_compressing_it() {
        let bytes: Vec<u8> = Source::new(7).pieces(3, 2 * PIECE_BYTES as u64).flatten().collect();
        let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(&bytes).unwrap();
        assert!(encoder.finish().unwrap().len() >= bytes.len());
    }
}
