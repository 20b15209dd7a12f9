//! Bytes that mean no good, for the tests of whatever reads bytes from outside.
//!
//! A parser is fed the files of `tests/corpus/<parser>/`, what its test itself gives, those changed in ways that a parser
//! does not expect, and plain noise. It may refuse all of it; it may not panic, and it must come to an end. What broke a
//! parser once belongs into its folder.

use std::fmt;
use std::fs;
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestRunner};

/// Changed bytes and noise for each parser.
const CASES: u32 = 2_000;
const NOISE_BYTES_MAX: usize = 512;
const CHANGES_MAX: usize = 6;
/// How long a parser may take for all of it; one that does not end takes longer.
const PATIENCE: Duration = Duration::from_secs(120);

/// One input, shown when a parser breaks at it.
#[derive(Clone)]
struct Input(Vec<u8>);

impl fmt::Debug for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "b\"{}\"", self.0.escape_ascii())
    }
}

#[derive(Debug, Clone)]
enum Change {
    Flip(Index, u8),
    Cut(Index),
    Drop(Index, Index),
    Repeat(Index, Index),
    Insert(Index, Vec<u8>),
    /// The rest of another input.
    Splice(Index, Index, Index),
}

/// Pieces that parsers trip over.
fn pieces() -> impl Strategy<Value = Vec<u8>> {
    let nasty: [&[u8]; 22] = [
        b"\0",
        b"\xff",
        b"\xed\xa0\x80",
        b"\xef\xbb\xbf",
        b"\"",
        b"\\",
        b"\\u",
        b"\\ud800",
        b"{",
        b"[",
        b"}",
        b"]",
        b",",
        b":",
        b"%",
        b"\r",
        b"\n",
        b"-",
        b"1e999",
        b"9223372036854775808",
        b"18446744073709551616",
        b"null",
    ];
    prop_oneof![proptest::sample::select(nasty.to_vec()).prop_map(<[u8]>::to_vec), vec(any::<u8>(), 1..8)]
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let index = any::<Index>;
    let change = prop_oneof![
        (index(), any::<u8>()).prop_map(|(at, bits)| Change::Flip(at, bits)),
        index().prop_map(Change::Cut),
        (index(), index()).prop_map(|(from, to)| Change::Drop(from, to)),
        (index(), index()).prop_map(|(from, to)| Change::Repeat(from, to)),
        (index(), pieces()).prop_map(|(at, piece)| Change::Insert(at, piece)),
        (index(), index(), index()).prop_map(|(at, other, from)| Change::Splice(at, other, from)),
    ];
    vec(change, 1..=CHANGES_MAX)
}

fn changed(seeds: &[Vec<u8>], mut bytes: Vec<u8>, changes: &[Change]) -> Vec<u8> {
    let range = |len: usize, a: &Index, b: &Index| {
        let (a, b) = (a.index(len + 1), b.index(len + 1));
        a.min(b)..a.max(b)
    };
    for change in changes {
        let len = bytes.len();
        match change {
            Change::Flip(at, bits) if len > 0 => bytes[at.index(len)] ^= bits,
            Change::Flip(..) => {}
            Change::Cut(at) => bytes.truncate(at.index(len + 1)),
            Change::Drop(a, b) => drop(bytes.drain(range(len, a, b))),
            Change::Repeat(a, b) => {
                let piece = bytes[range(len, a, b)].to_vec();
                bytes.extend_from_slice(&piece);
            }
            Change::Insert(at, piece) => {
                let at = at.index(len + 1);
                bytes.splice(at..at, piece.iter().copied());
            }
            Change::Splice(at, other, from) => {
                let other = &seeds[other.index(seeds.len())];
                bytes.truncate(at.index(len + 1));
                bytes.extend_from_slice(&other[from.index(other.len() + 1)..]);
            }
        }
    }
    bytes
}

/// The files of a folder of `tests/corpus`.
fn corpus(parser: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(parser);
    let mut files: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{} is empty", folder.display());
    files.into_iter().map(|file| fs::read(file).unwrap()).collect()
}

/// Feeds a parser its corpus, its own `good` inputs, and what becomes of both.
pub fn feed(parser: &str, good: Vec<Vec<u8>>, parse: impl Fn(&[u8]) + Send + 'static) {
    let mut seeds = corpus(parser);
    seeds.extend(good);
    let now = Arc::new(Mutex::new(Input(Vec::new())));
    let (ended, hear_ended) = mpsc::channel();
    let fed = Arc::clone(&now);
    let thread = thread::Builder::new().stack_size(STACK_BYTES).spawn(move || {
        let take = |input: Input| {
            *fed.lock().unwrap_or_else(PoisonError::into_inner) = input.clone();
            parse(&input.0);
        };
        for seed in &seeds {
            take(Input(seed.clone()));
        }
        let of_seeds = (any::<Index>(), changes()).prop_map(|(which, changes)| {
            let seed = seeds[which.index(seeds.len())].clone();
            Input(changed(&seeds, seed, &changes))
        });
        let noise = vec(any::<u8>(), 0..=NOISE_BYTES_MAX).prop_map(Input);
        let config = Config { cases: CASES, failure_persistence: None, ..Config::default() };
        let result = TestRunner::new(config).run(&prop_oneof![4 => of_seeds, 1 => noise], |input| {
            take(input);
            Ok(())
        });
        ended.send(result.map_err(|error| error.to_string())).unwrap();
    });
    let thread = thread.unwrap();
    let last = || now.lock().unwrap_or_else(PoisonError::into_inner).clone();
    match hear_ended.recv_timeout(PATIENCE) {
        Ok(result) => result.unwrap_or_else(|error| panic!("{parser}: {error}")),
        Err(RecvTimeoutError::Timeout) => panic!("{parser}: it does not end at {:?}", last()),
        Err(RecvTimeoutError::Disconnected) => {
            let _ = thread.join();
            panic!("{parser}: it broke at {:?}", last());
        }
    }
}

/// As much as the threads of the node have: what only a larger stack survives would be found in the shop.
const STACK_BYTES: usize = 2 * 1024 * 1024;

#[test]
#[should_panic(expected = "topics: ")]
fn a_parser_that_breaks_is_found() {
    feed("topics", vec![b"good".to_vec()], |bytes| assert!(!bytes.contains(&0xff)));
}
