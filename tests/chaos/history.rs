//! What every client did and saw, in the words of the clients: written down as it happens, and read again to be judged.
//!
//! One line of JSON for each attempt of a request, each message of a subscription and each fault. The times are of one
//! monotonic clock, in microseconds since the run began. Nothing here may come from the server's own opinion.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use serde_json::Value;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "line", rename_all = "snake_case")]
pub enum Line {
    Asked(Asked),
    Followed(Followed),
    Heard(Heard),
    /// A fault, and when it was over.
    Fault {
        what: String,
        from_us: u64,
        to_us: u64,
    },
}

/// One attempt of a request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Asked {
    pub client: String,
    /// What the client wants done: attempts under one number are one wish, under one key.
    pub wish: u64,
    pub asked_us: u64,
    pub answered_us: u64,
    pub address: String,
    pub method: String,
    pub path: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub body: Value,
    /// What a list is read for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seeks: Option<Seeks>,
    pub outcome: Outcome,
}

/// An order that its buyer was told of, and where that was written: a list that knows so much has it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Seeks {
    pub order: String,
    pub status: String,
    pub position: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    Ok {
        status: u16,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        etag: Option<u64>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        position: Option<u64>,
        /// Whether it is the kept answer of an earlier attempt.
        #[serde(default)]
        replayed: bool,
        answer: Value,
    },
    /// A problem that says no, and why: nothing was done.
    Refused {
        status: u16,
        #[serde(default)]
        replayed: bool,
        problem: Value,
    },
    /// The connection broke, the time was over, or the server does not know: it may have been done, or may be yet.
    Unknown { why: String },
}

/// A subscription that was opened. Each reconnect is another one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Followed {
    pub client: String,
    pub topic: String,
    pub at_us: u64,
    pub address: String,
    pub transport: String,
    /// The last event that it had seen.
    pub after: u64,
}

/// A message that a subscriber took.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Heard {
    pub client: String,
    pub topic: String,
    pub at_us: u64,
    pub seq: u64,
    /// The event's type; `(state)` when the newest state took the place of events.
    #[serde(rename = "type")]
    pub event_type: String,
}

impl Outcome {
    pub fn is_known(&self) -> bool {
        !matches!(self, Outcome::Unknown { .. })
    }

    /// The answer's body, when it says yes.
    pub fn answer(&self) -> Option<&Value> {
        match self {
            Outcome::Ok { answer, .. } => Some(answer),
            Outcome::Refused { .. } | Outcome::Unknown { .. } => None,
        }
    }

    /// Where it was written, as far as the answer says.
    pub fn position(&self) -> Option<u64> {
        match self {
            Outcome::Ok { position, .. } => *position,
            Outcome::Refused { .. } | Outcome::Unknown { .. } => None,
        }
    }

    pub fn status(&self) -> Option<u16> {
        match self {
            Outcome::Ok { status, .. } | Outcome::Refused { status, .. } => Some(*status),
            Outcome::Unknown { .. } => None,
        }
    }
}

/// Takes down what happens. Clones write into the same history.
#[derive(Clone)]
pub struct Recorder(Arc<Book>);

struct Book {
    began: Instant,
    wishes: AtomicU64,
    answers: AtomicU64,
    lines: Mutex<(Vec<Line>, Option<BufWriter<File>>)>,
}

impl Recorder {
    /// Writes to this file as well.
    pub fn new(file: Option<&Path>) -> Recorder {
        let file = file.map(|path| BufWriter::new(File::create(path).unwrap()));
        let (began, lines) = (Instant::now(), Mutex::new((Vec::new(), file)));
        Recorder(Arc::new(Book { began, wishes: AtomicU64::new(0), answers: AtomicU64::new(0), lines }))
    }

    /// Microseconds since the run began.
    pub fn now_us(&self) -> u64 {
        u64::try_from(self.0.began.elapsed().as_micros()).unwrap()
    }

    pub fn new_wish(&self) -> u64 {
        self.0.wishes.fetch_add(1, Ordering::Relaxed)
    }

    pub fn note(&self, line: Line) {
        if matches!(&line, Line::Asked(asked) if asked.outcome.is_known()) {
            self.0.answers.fetch_add(1, Ordering::Relaxed);
        }
        let mut book = self.0.lines.lock().unwrap();
        let (lines, file) = &mut *book;
        if let Some(file) = file {
            serde_json::to_writer(&mut *file, &line).unwrap();
            file.write_all(b"\n").unwrap();
        }
        lines.push(line);
    }

    /// How many requests were answered with yes or no so far.
    pub fn answers(&self) -> u64 {
        self.0.answers.load(Ordering::Relaxed)
    }

    /// All so far; what was written down is on the disk then.
    pub fn history(&self) -> History {
        let mut book = self.0.lines.lock().unwrap();
        if let Some(file) = &mut book.1 {
            file.flush().unwrap();
        }
        History::of(book.0.clone())
    }
}

/// A run, ready to be judged.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// The attempts of each wish, in their order.
    pub wishes: BTreeMap<u64, Wish>,
    /// By subscriber and topic, in the order of its own time.
    pub followed: BTreeMap<(String, String), Vec<Heard>>,
    /// Faults, with when they began and ended.
    pub faults: Vec<(String, u64, u64)>,
    /// The last moment in it.
    pub end_us: u64,
}

/// What one client wanted done once.
#[derive(Debug, Clone, Default)]
pub struct Wish {
    pub attempts: Vec<Asked>,
}

impl Wish {
    pub fn first(&self) -> &Asked {
        &self.attempts[0]
    }

    /// The first attempt that was answered with yes or no.
    pub fn known(&self) -> Option<&Asked> {
        self.attempts.iter().find(|attempt| attempt.outcome.is_known())
    }

    /// The answer, when it was yes.
    pub fn granted(&self) -> Option<(&Asked, &Value)> {
        self.known().and_then(|attempt| Some((attempt, attempt.outcome.answer()?)))
    }

    pub fn is(&self, method: &str, pattern: &str) -> bool {
        let first = self.first();
        let path = first.path.split('?').next().unwrap_or("");
        first.method == method
            && pattern.split('/').count() == path.split('/').count()
            && pattern.split('/').zip(path.split('/')).all(|(wanted, given)| wanted == "*" || wanted == given)
    }

    pub fn segment(&self, place: usize) -> &str {
        self.first().path.split('?').next().unwrap_or("").split('/').filter(|piece| !piece.is_empty()).nth(place).unwrap_or("")
    }
}

impl History {
    pub fn of(lines: Vec<Line>) -> History {
        let mut history = History::default();
        for line in lines {
            match line {
                Line::Asked(asked) => {
                    history.end_us = history.end_us.max(asked.answered_us);
                    history.wishes.entry(asked.wish).or_default().attempts.push(asked);
                }
                Line::Followed(followed) => {
                    history.followed.entry((followed.client, followed.topic)).or_default();
                }
                Line::Heard(heard) => {
                    history.end_us = history.end_us.max(heard.at_us);
                    history.followed.entry((heard.client.clone(), heard.topic.clone())).or_default().push(heard);
                }
                Line::Fault { what, from_us, to_us } => history.faults.push((what, from_us, to_us)),
            }
        }
        for wish in history.wishes.values_mut() {
            wish.attempts.sort_by_key(|attempt| attempt.asked_us);
        }
        for heard in history.followed.values_mut() {
            heard.sort_by_key(|heard| heard.at_us);
        }
        history
    }

    /// Reads what a run has left.
    pub fn read(path: &Path) -> History {
        let file = BufReader::new(File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())));
        History::of(file.lines().map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect())
    }

    /// Each attempt that was answered with yes or no.
    pub fn known(&self) -> impl Iterator<Item = &Asked> {
        self.wishes.values().flat_map(|wish| &wish.attempts).filter(|attempt| attempt.outcome.is_known())
    }

    /// Why attempts ended without a yes or no, and how many.
    pub fn unknown(&self) -> BTreeMap<String, usize> {
        let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
        for attempt in self.wishes.values().flat_map(|wish| &wish.attempts) {
            if let Outcome::Unknown { why } = &attempt.outcome {
                // Where and after how long is of no interest.
                let is_place = |word: &str| word.starts_with("127.") || word.chars().all(|letter| letter.is_ascii_digit());
                let words: Vec<&str> = why.split(' ').map(|word| if is_place(word) { "…" } else { word }).collect();
                *reasons.entry(words.join(" ")).or_default() += 1;
            }
        }
        reasons
    }

    /// How long those waited, in milliseconds and shortest first, whom a fault had cost an attempt or held up until it was
    /// over: from the fault or their request, whichever was later, to their answer. By the sort of the fault.
    pub fn outages_ms(&self) -> BTreeMap<&str, Vec<u64>> {
        let mut outages: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
        for (what, from_us, to_us) in &self.faults {
            let sort = what.split([' ', '{']).next().unwrap_or(what);
            for wish in self.wishes.values() {
                let was_hit = |attempt: &&Asked| {
                    let was_under_way = attempt.asked_us <= *to_us && attempt.answered_us >= *from_us;
                    was_under_way && (!attempt.outcome.is_known() || attempt.answered_us > *to_us)
                };
                if let (Some(known), Some(_)) = (wish.known(), wish.attempts.iter().find(was_hit))
                    && known.answered_us >= *from_us
                {
                    let waited_us = known.answered_us - wish.first().asked_us.max(*from_us);
                    outages.entry(sort).or_default().push(waited_us / 1_000);
                }
            }
        }
        outages.values_mut().for_each(|waited| waited.sort_unstable());
        outages
    }

    pub fn wished<'a>(&'a self, method: &'a str, pattern: &'a str) -> impl Iterator<Item = &'a Wish> {
        self.wishes.values().filter(move |wish| wish.is(method, pattern))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_was_written_down_is_read_again_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("history.jsonl");
        let recorder = Recorder::new(Some(&path));
        let asked = |outcome, asked_us| {
            Line::Asked(Asked {
                client: "buyer-1".into(),
                wish: 7,
                asked_us,
                answered_us: asked_us + 5,
                address: "http://127.0.0.1:1".into(),
                method: "POST".into(),
                path: "/api/carts/cart_1/items?x=1".into(),
                key: Some("k".into()),
                body: json!({ "sku": "A" }),
                seeks: None,
                outcome,
            })
        };
        let ok = Outcome::Ok { status: 200, etag: Some(3), position: Some(9), replayed: true, answer: json!({ "id": "cart_1" }) };
        // Attempts end in another order than they begin.
        recorder.note(asked(ok, 20));
        recorder.note(asked(Outcome::Unknown { why: "the connection broke".into() }, 10));
        let heard = Heard { client: "c".into(), topic: "t".into(), at_us: 40, seq: 1, event_type: "order.created".into() };
        recorder.note(Line::Heard(heard));
        recorder.note(Line::Fault { what: "KillNode { node: 0 }".into(), from_us: 11, to_us: 12 });
        recorder.note(Line::Fault { what: "StopFor { node: 0 }".into(), from_us: 16, to_us: 18 });
        let history = recorder.history();
        let read = History::read(&path);
        for history in [history, read] {
            let wish = &history.wishes[&7];
            assert_eq!((wish.first().asked_us, wish.known().unwrap().asked_us), (10, 20));
            assert_eq!(wish.granted().unwrap().1["id"], "cart_1");
            assert!(wish.is("POST", "/api/carts/*/items") && !wish.is("POST", "/api/carts/*/merge"));
            assert!(!wish.is("GET", "/api/carts/*/items") && !wish.is("POST", "/api/carts/*"));
            assert_eq!((wish.segment(1), wish.segment(2)), ("carts", "cart_1"));
            assert_eq!((history.followed.len(), history.faults.len(), history.end_us), (1, 2, 40));
            // The first attempt was lost when the node was killed; when it was stopped, nothing was under way.
            assert_eq!(history.outages_ms().into_keys().collect::<Vec<_>>(), ["KillNode"]);
        }
        assert_eq!(recorder.answers(), 1);
    }
}
