//! A look at fjall's write-ahead files before fjall opens them, because fjall forgives too much.
//!
//! What fjall 3.1 does by itself (`journal/reader.rs`, `journal/batch_reader.rs`): at the first entry that it cannot
//! parse it truncates the file there and goes on, whatever follows. A flipped byte in a tag or a length therefore loses
//! every later batch of that file without a word, acknowledged or not. And where an entry parses but the batch's
//! checksum is wrong it refuses to open, even when that batch is only the tail torn by a power failure.
//!
//! What this file makes of it. The embedded journal flushes each batch before it writes the next, so at most one batch,
//! the last, can be torn, and whatever stands behind a batch proves that the batch was once durable. Hence:
//!
//! - the files end with a batch that is not whole, nothing of a later batch follows, and its position was not
//!   acknowledged: a torn tail. It is copied to `torn-tail`, cut off, and reported.
//! - anything else that is not whole, any step back or gap in the sequence numbers or positions, within a file or from
//!   one to the next: corruption. Nothing is touched, the place is named, the journal does not open.
//!
//! It must never cut off what may have been acknowledged.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_64;

use super::embedded::{OpenError, frame_position};
use super::journal::Position;

/// Tags and trailer of fjall's format 3 (`journal/entry.rs`, `file.rs`).
const START: u8 = 1;
const ITEM: u8 = 2;
const END: u8 = 3;
const TRAILER: [u8; 4] = [b'F', b'J', b'L', 3];

/// A batch never has more items or larger values than these; more means that a length is damaged.
const ITEMS_MAX: u32 = 1 << 20;
const VALUE_MAX_BYTES: u32 = 1 << 28;
const KEY_MAX_BYTES: u16 = 1 << 11;
const KEY_SPACES_MAX: u64 = 1 << 10;
/// fjall's background work takes a few sequence numbers between batches, never this many.
const SEQUENCE_STEP_MAX: u64 = 1 << 32;

/// What the files hold when they are sound.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Survey {
    pub first: Option<Position>,
    pub highest: Option<Position>,
    sequence: Option<u64>,
}

/// How a file ends.
#[derive(Debug, PartialEq, Eq)]
enum Tail {
    Whole,
    /// Bytes that are no whole batch begin at `at`.
    Broken {
        at: usize,
        what: &'static str,
        later: Option<usize>,
    },
    /// Whole batches, but not the ones that belong here.
    Misplaced {
        at: usize,
        what: String,
    },
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

const CUT: &str = "it is cut";

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], &'static str> {
        let taken = self.bytes.get(self.at..).and_then(|rest| rest.get(..len)).ok_or(CUT)?;
        self.at += len;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], &'static str> {
        self.take(N)?.try_into().map_err(|_| CUT)
    }

    fn byte(&mut self) -> Result<u8, &'static str> {
        self.array().map(u8::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, &'static str> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, &'static str> {
        self.array().map(u64::from_le_bytes)
    }

    /// Number of items and sequence number.
    fn start(&mut self) -> Result<(u32, u64), &'static str> {
        let (tag, count, sequence) = (self.byte()?, self.u32()?, self.u64()?);
        if tag != START || count == 0 || count > ITEMS_MAX {
            return Err("it does not begin as a batch does");
        }
        Ok((count, sequence))
    }

    /// Type of the value, lengths of key and value.
    fn item_head(&mut self) -> Result<(u8, usize, usize), &'static str> {
        let (tag, kind, compression, space) = (self.byte()?, self.byte()?, self.byte()?, self.u64()?);
        let key = u16::from_le_bytes(self.array()?);
        let (value, stored) = (self.u32()?, self.u32()?);
        let sound = tag == ITEM
            && matches!(kind, 0..=2)
            && compression == 0
            && space <= KEY_SPACES_MAX
            && (1..=KEY_MAX_BYTES).contains(&key)
            && value == stored
            && value <= VALUE_MAX_BYTES;
        if sound { Ok((kind, usize::from(key), value as usize)) } else { Err("an item's head is damaged") }
    }
}

struct WholeBatch {
    end: usize,
    sequence: u64,
    positions: Vec<Position>,
}

fn whole_batch(bytes: &[u8], at: usize) -> Result<WholeBatch, &'static str> {
    let mut reader = Reader { bytes, at };
    let (count, sequence) = reader.start()?;
    let items = reader.at;
    let mut positions = Vec::new();
    for _ in 0..count {
        let (kind, key, value) = reader.item_head()?;
        let (key, value) = (reader.take(key)?, reader.take(value)?);
        if kind == 0
            && let Some(position) = frame_position(key, value)
        {
            positions.push(position.map_err(|_| "a record's checksum does not match")?);
        }
    }
    let hash = xxh3_64(&bytes[items..reader.at]);
    if reader.byte()? != END {
        return Err("it does not end as a batch does");
    }
    if reader.u64()? != hash {
        return Err("its checksum does not match");
    }
    if reader.array()? != TRAILER {
        return Err("it does not end as a batch does");
    }
    Ok(WholeBatch { end: reader.at, sequence, positions })
}

/// Where behind `at` another batch begins, whole or not. The head of its first item is asked for too, so that bytes
/// inside a payload are not taken for one.
fn later_batch(bytes: &[u8], at: usize, after: Option<u64>) -> Option<usize> {
    let begins = |at: &usize| {
        let mut reader = Reader { bytes, at: *at };
        let Ok((_, sequence)) = reader.start() else { return false };
        after.is_none_or(|after| (after..after.saturating_add(SEQUENCE_STEP_MAX)).contains(&sequence))
            && reader.item_head().is_ok()
    };
    (at + 1..bytes.len()).find(begins)
}

/// A file of fjall's begins as 64 MiB of zeros; whole pages of them are skipped at the speed of a comparison.
pub(super) fn without_zeros(bytes: &[u8]) -> &[u8] {
    const PAGE: [u8; 4096] = [0; 4096];
    let pages = bytes.chunks(PAGE.len()).rposition(|page| *page != PAGE[..page.len()]).map_or(0, |last| last + 1);
    let bytes = &bytes[..bytes.len().min(pages * PAGE.len())];
    &bytes[..bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1)]
}

/// Reads one file, going on from the survey of those before it.
fn walk(bytes: &[u8], survey: &mut Survey) -> Tail {
    let bytes = without_zeros(bytes);
    let mut at = 0;
    while at < bytes.len() {
        let batch = match whole_batch(bytes, at) {
            Ok(batch) => batch,
            Err(what) => return Tail::Broken { at, what, later: later_batch(bytes, at, survey.sequence) },
        };
        if let Some(before) = survey.sequence
            && !(before.saturating_add(1)..before.saturating_add(SEQUENCE_STEP_MAX)).contains(&batch.sequence)
        {
            return Tail::Misplaced { at, what: format!("sequence number {} follows {before}", batch.sequence) };
        }
        survey.sequence = Some(batch.sequence);
        for position in batch.positions {
            if let Some(before) = survey.highest
                && before.0.checked_add(1) != Some(position.0)
            {
                return Tail::Misplaced { at, what: format!("position {} follows {}", position.0, before.0) };
            }
            survey.first.get_or_insert(position);
            survey.highest = Some(position);
        }
        at = batch.end;
    }
    Tail::Whole
}

/// fjall's write-ahead files, oldest first.
pub(super) fn files(database: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(database)? {
        let path = entry?.path();
        let number = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".jnl"));
        if let Some(number) = number.and_then(|number| number.parse::<u64>().ok()) {
            files.push((number, path));
        }
    }
    files.sort();
    Ok(files.into_iter().map(|(_, path)| path).collect())
}

/// Surveys the write-ahead files of the database in `database`, cutting off a torn tail. `acknowledged` is the newest
/// position known to have been acknowledged; what is cut off is kept in `kept`.
pub(super) fn inspect(
    database: &Path,
    acknowledged: Option<Position>,
    kept: &Path,
    repaired: &mut impl FnMut(String),
) -> Result<Survey, OpenError> {
    let failed = |doing: &str, path: &Path| {
        let doing = format!("{doing} {}", path.display());
        move |source| OpenError::Io { doing, source }
    };
    let mut survey = Survey::default();
    let files = files(database).map_err(failed("reading", database))?;
    for (index, path) in files.iter().enumerate() {
        let bytes = fs::read(path).map_err(failed("reading", path))?;
        let corrupt = |at: usize, what: String| OpenError::Corrupt { place: format!("{}, byte {at}", path.display()), what };
        let (at, what) = match walk(&bytes, &mut survey) {
            Tail::Whole => continue,
            Tail::Misplaced { at, what } => return Err(corrupt(at, what)),
            Tail::Broken { at, what, later: Some(later) } => {
                return Err(corrupt(at, format!("the batch here is broken ({what}), and a later one begins at byte {later}")));
            }
            Tail::Broken { at, what, later: None } => (at, what),
        };
        if index + 1 < files.len() {
            return Err(corrupt(at, format!("the batch here is broken ({what}), and a later file follows")));
        }
        if let (Some(acknowledged), Some(highest)) = (acknowledged, survey.highest)
            && highest < acknowledged
        {
            let what = format!(
                "the batch here is broken ({what}); position {} is the last whole one, but {} was acknowledged",
                highest.0, acknowledged.0
            );
            return Err(corrupt(at, what));
        }
        fs::write(kept, &bytes[at..]).map_err(failed("writing", kept))?;
        let file = OpenOptions::new().write(true).open(path).map_err(failed("opening", path))?;
        file.set_len(at as u64).and_then(|()| file.sync_all()).map_err(failed("truncating", path))?;
        repaired(format!(
            "{}: cut off a torn tail at byte {at} ({what}); it was never acknowledged, and is kept in {}",
            path.display(),
            kept.display()
        ));
    }
    Ok(survey)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::persistence::{Append, Embedded, EntityKey, Journal, Options, Wake};
    use std::sync::mpsc;

    use crate::persistence::Position;

    /// The write-ahead bytes of a journal with `groups` groups of one batch each.
    fn written(groups: u64) -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let (journal, _) = Embedded::open(dir.path(), Options::default()).unwrap();
        for version in 0..groups {
            let (sender, answer) = mpsc::channel();
            let wake = if version % 2 == 0 { Wake::Now } else { Wake::Never };
            let payload = format!("{{\"version\":{version}}}").into();
            let append =
                Append { entity: EntityKey::new("cart", "a"), expected: version, after: Position(0), count: 1, payload, wake };
            journal.append(append, Box::new(move |result| sender.send(result).unwrap()));
            answer.recv().unwrap().unwrap();
        }
        journal.close();
        let files = files(&dir.path().join("fjall")).unwrap();
        assert_eq!(files.len(), 1);
        let mut bytes = fs::read(&files[0]).unwrap();
        let len = without_zeros(&bytes).len();
        // A few of fjall's zeros stay behind it.
        bytes.truncate(len + 64);
        bytes
    }

    #[test]
    fn no_bytes_break_the_look_at_a_file() {
        crate::hostile::feed("write-ahead", vec![written(3)], |bytes| {
            for sequence in [None, Some(0), Some(u64::MAX)] {
                let mut survey = Survey { sequence, ..Survey::default() };
                match walk(bytes, &mut survey) {
                    Tail::Whole => {}
                    Tail::Misplaced { at, .. } => assert!(at < bytes.len()),
                    Tail::Broken { at, later, .. } => assert!(at < bytes.len() && later.is_none_or(|later| later > at)),
                }
            }
        });
    }

    /// Where each batch begins, and where the last ends.
    fn seams(bytes: &[u8]) -> Vec<usize> {
        let mut seams = vec![0];
        while let Ok(batch) = whole_batch(bytes, seams[seams.len() - 1]) {
            seams.push(batch.end);
        }
        seams
    }

    #[test]
    fn a_sound_file_is_read_whole() {
        let bytes = written(6);
        let mut survey = Survey::default();
        assert_eq!(walk(&bytes, &mut survey), Tail::Whole);
        assert_eq!((survey.first, survey.highest), (Some(Position(1)), Some(Position(6))));
        assert_eq!(seams(&bytes).len(), 7);
    }

    #[test]
    fn a_file_cut_anywhere_is_whole_or_has_a_torn_tail() {
        let bytes = written(4);
        let seams = seams(&bytes);
        for cut in 0..bytes.len() {
            for zeros in [0, 200] {
                let mut torn = bytes[..cut].to_vec();
                torn.resize(cut + zeros, 0);
                let mut survey = Survey::default();
                let tail = walk(&torn, &mut survey);
                // A batch whose last bytes are all that is missing does not exist: it ends with a trailer.
                let whole = seams.iter().rposition(|seam| *seam <= cut).unwrap();
                assert_eq!(survey.highest, (whole > 0).then_some(Position(whole as u64)), "cut at {cut}");
                match tail {
                    Tail::Whole => assert!(seams[whole] == cut || whole + 1 == seams.len()),
                    Tail::Broken { at, later, .. } => assert_eq!((at, later), (seams[whole], None), "cut at {cut}"),
                    Tail::Misplaced { .. } => panic!("cut at {cut}: {tail:?}"),
                }
            }
        }
    }

    /// A power failure may keep later pages of the last batch and lose earlier ones.
    #[test]
    fn a_last_batch_with_holes_is_a_torn_tail() {
        let bytes = written(3);
        let seams = seams(&bytes);
        for from in seams[2]..seams[3] {
            for to in from + 1..=seams[3] {
                let mut torn = bytes.clone();
                torn[from..to].fill(0);
                if torn == bytes {
                    continue;
                }
                let mut survey = Survey::default();
                match walk(&torn, &mut survey) {
                    Tail::Broken { at, later: None, .. } => assert_eq!(at, seams[2]),
                    // The batch's sequence number is in no checksum; zeros in its high bytes change nothing.
                    Tail::Misplaced { at, .. } => assert_eq!(at, seams[2], "{from}..{to}"),
                    // Nothing of it is left.
                    Tail::Whole => assert_eq!((from, to), (seams[2], seams[3])),
                    tail => panic!("{from}..{to}: {tail:?}"),
                }
            }
        }
    }

    #[test]
    fn a_flipped_bit_is_never_taken_for_the_end_of_the_file() {
        let bytes = written(5);
        let seams = seams(&bytes);
        for at in 0..seams[5] {
            for bit in 0..8 {
                let mut flipped = bytes.clone();
                flipped[at] ^= 1 << bit;
                let batch = seams.iter().rposition(|seam| *seam <= at).unwrap();
                let in_sequence_number = (5..13).contains(&(at - seams[batch]));
                let mut survey = Survey::default();
                match walk(&flipped, &mut survey) {
                    Tail::Broken { at: broken, later, .. } => {
                        assert_eq!(broken, seams[batch]);
                        assert_eq!(later.is_some(), batch < 4, "byte {at}, bit {bit}, batch {batch}");
                    }
                    Tail::Misplaced { .. } => assert!(in_sequence_number),
                    Tail::Whole => {
                        assert!(in_sequence_number, "byte {at}, bit {bit}");
                        assert_eq!(survey.highest, Some(Position(5)));
                    }
                }
            }
        }
    }

    #[test]
    fn a_missing_batch_is_noticed() {
        let bytes = written(5);
        let seams = seams(&bytes);
        for missing in 1..4 {
            let mut short = bytes[..seams[missing]].to_vec();
            short.extend_from_slice(&bytes[seams[missing + 1]..]);
            let tail = walk(&short, &mut Survey::default());
            assert!(matches!(tail, Tail::Misplaced { .. }), "{tail:?}");
        }
    }
}
