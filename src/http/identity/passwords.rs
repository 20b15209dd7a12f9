//! Passwords: hashed by argon2id and verified on threads of their own, never on those that serve.
//!
//! 1. There are half as many threads as cores, of low priority, so that a storm of log-ins leaves checkouts their time.
//! 2. They take jobs from a queue of [`WAITING_MAX`]. When it is full, the caller hears [`PasswordError::Busy`] at once.
//! 3. A job that nobody waits for any more, or that has waited [`WAIT_MS`], is dropped undone.
//!
//! An unknown account must cost the same time as a wrong password: [`Passwords::verify_nobody`] does the same work.
//!
//! Passwords are never logged, shown or kept; their memory is overwritten when they are let go.

use std::collections::HashSet;
use std::io;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use argon2::Argon2;
use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{self, PasswordHasher, PasswordVerifier};
use serde::Deserialize;
use tokio::sync::oneshot;
use zeroize::Zeroizing;

use super::random;
use crate::actors::credential::hex;

/// Jobs that wait.
pub const WAITING_MAX: usize = 64;
/// How long a job waits for a thread.
pub const WAIT_MS: u64 = 3_000;
/// How long its work may take on top, on a machine that is busy with something else.
const WORK_MS: u64 = 7_000;
/// Of 0 to 19. At 19 a busy machine would let nobody in: a thread then gets about a seventieth of what others get.
#[cfg(target_os = "linux")]
const NICE: i32 = 10;

/// In characters, as NIST SP 800-63B counts them.
pub const NEW_CHARS_MIN: usize = 8;
pub const NEW_CHARS_MAX: usize = 128;
/// A longer text was never taken as a password.
const BYTES_MAX: usize = 4 * NEW_CHARS_MAX;

/// A password as somebody typed it. `Debug` does not show it.
#[derive(Clone, Deserialize)]
#[serde(from = "String")]
pub struct Password(Zeroizing<String>);

impl std::fmt::Debug for Password {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Password(…)")
    }
}

impl From<String> for Password {
    fn from(text: String) -> Self {
        Password(Zeroizing::new(text))
    }
}

impl From<&str> for Password {
    fn from(text: &str) -> Self {
        Password(Zeroizing::new(text.to_owned()))
    }
}

/// Why a password may not be chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    #[error("a password has at least {NEW_CHARS_MIN} characters")]
    TooShort,
    #[error("a password has at most {NEW_CHARS_MAX} characters")]
    TooLong,
    #[error("this password is among the commonest, which are tried first; choose another")]
    TooCommon,
    #[error("the password must not be the e-mail address")]
    IsTheEmail,
}

/// Lower case, one for each line: what lists of leaked passwords are full of, as far as it is long enough to be chosen.
static COMMON: LazyLock<HashSet<&str>> = LazyLock::new(|| include_str!("common_passwords.txt").lines().collect());

impl Password {
    /// Whether it may be chosen for the account of this e-mail: by length and by what is tried first, not by which signs
    /// it has (NIST SP 800-63B, 3.1.1.2).
    pub fn fits(&self, email: &str) -> Result<(), Unfit> {
        match self.0.chars().count() {
            ..NEW_CHARS_MIN => return Err(Unfit::TooShort),
            NEW_CHARS_MIN..=NEW_CHARS_MAX => {}
            _ => return Err(Unfit::TooLong),
        }
        let lower = Zeroizing::new(self.0.to_lowercase());
        let mut signs = lower.chars();
        let first = signs.next();
        if COMMON.contains(lower.as_str()) || signs.all(|sign| Some(sign) == first) {
            return Err(Unfit::TooCommon);
        }
        let email = email.trim().to_lowercase();
        let name = email.split_once('@').map_or(email.as_str(), |(name, _)| name);
        if lower.as_str() == email || lower.as_str() == name {
            return Err(Unfit::IsTheEmail);
        }
        Ok(())
    }
}

#[derive(Debug, thiserror::Error)]
pub enum PasswordError {
    /// Too many wait already, or this one waited too long: 503.
    #[error("too many are logging in at once")]
    Busy,
    #[error("the threads that hash passwords cannot be started: {0}")]
    Threads(#[from] io::Error),
    #[error("the password cannot be hashed: {0}")]
    Hash(password_hash::Error),
    #[error("the password's hash that was kept cannot be read")]
    NotAHash,
}

enum Work {
    Hash(oneshot::Sender<Result<String, PasswordError>>),
    Verify { hash: Arc<str>, answer: oneshot::Sender<Result<bool, PasswordError>> },
}

struct Job {
    password: Password,
    work: Work,
    /// When it is no longer begun.
    begin_by: Instant,
}

/// Hashes and verifies. Clones share the threads, which end with the last of them.
#[derive(Clone)]
pub struct Passwords {
    jobs: SyncSender<Job>,
    /// The hash of a password that nobody knows.
    nobodys: Arc<str>,
}

impl Passwords {
    /// Starts the threads: half as many as there are cores, at least one.
    pub fn start() -> Result<Self, PasswordError> {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        Passwords::with((cores / 2).max(1), WAITING_MAX)
    }

    fn with(threads: usize, waiting_max: usize) -> Result<Self, PasswordError> {
        // A password of random bytes, which are forgotten here.
        let unknown = Zeroizing::new(hex(&random::<32>().map_err(io::Error::other)?));
        let nobodys = hash(unknown.as_bytes())?.into();
        let (jobs, waiting) = sync_channel(waiting_max);
        let waiting = Arc::new(Mutex::new(waiting));
        for n in 0..threads {
            let waiting = Arc::clone(&waiting);
            thread::Builder::new().name(format!("password-{n}")).spawn(move || work(&waiting))?;
        }
        Ok(Passwords { jobs, nobodys })
    }

    /// A PHC string to keep.
    pub async fn hash(&self, password: Password) -> Result<String, PasswordError> {
        let (answer, answered) = oneshot::channel();
        self.work(password, Work::Hash(answer), answered).await
    }

    /// Whether this is the password whose hash was kept.
    pub async fn verify(&self, password: Password, hash: &str) -> Result<bool, PasswordError> {
        let (answer, answered) = oneshot::channel();
        self.work(password, Work::Verify { hash: hash.into(), answer }, answered).await
    }

    /// Takes the time of a [`Passwords::verify`] for an account that there is not. The answer is always no.
    pub async fn verify_nobody(&self, password: Password) -> Result<bool, PasswordError> {
        let (answer, answered) = oneshot::channel();
        let hash = Arc::clone(&self.nobodys);
        self.work(password, Work::Verify { hash, answer }, answered).await.map(|_| false)
    }

    async fn work<T>(
        &self,
        password: Password,
        work: Work,
        answered: oneshot::Receiver<Result<T, PasswordError>>,
    ) -> Result<T, PasswordError> {
        let begin_by = Instant::now() + Duration::from_millis(WAIT_MS);
        match self.jobs.try_send(Job { password, work, begin_by }) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => return Err(PasswordError::Busy),
        }
        match tokio::time::timeout(Duration::from_millis(WAIT_MS + WORK_MS), answered).await {
            Ok(Ok(answer)) => answer,
            // Dropped undone, or not done in time.
            Ok(Err(_)) | Err(_) => Err(PasswordError::Busy),
        }
    }
}

/// The life of a thread: one job after the other, until nobody can send one.
fn work(waiting: &Mutex<Receiver<Job>>) {
    yield_to_others();
    loop {
        let job = waiting.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Job { password, work, begin_by }) = job else { return };
        if Instant::now() >= begin_by {
            continue;
        }
        // Whoever asked may have gone while the work was done.
        match work {
            Work::Hash(answer) if !answer.is_closed() => drop(answer.send(hash(password.0.as_bytes()))),
            Work::Verify { hash, answer } if !answer.is_closed() => drop(answer.send(verify(password.0.as_bytes(), &hash))),
            Work::Hash(_) | Work::Verify { .. } => {}
        }
    }
}

/// On Linux a priority is each thread's own. Elsewhere it would be the whole process's, and is left alone.
fn yield_to_others() {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::setpriority_process(None, NICE) {
        tracing::warn!(%error, "the threads that hash passwords keep their full priority");
    }
}

fn hash(password: &[u8]) -> Result<String, PasswordError> {
    Argon2::default().hash_password(password).map(|hash| hash.to_string()).map_err(PasswordError::Hash)
}

fn verify(password: &[u8], hash: &str) -> Result<bool, PasswordError> {
    let hash = PasswordHash::new(hash).map_err(|_| PasswordError::NotAHash)?;
    if hash.salt.is_none() || hash.hash.is_none() {
        return Err(PasswordError::NotAHash);
    }
    // It is wrong, and yet takes the usual time.
    let (password, short_enough) = if password.len() > BYTES_MAX { (&b""[..], false) } else { (password, true) };
    match Argon2::default().verify_password(password, &hash) {
        Ok(()) => Ok(short_enough),
        Err(password_hash::Error::PasswordInvalid) => Ok(false),
        Err(error) => Err(PasswordError::Hash(error)),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::SyncSender;

    use super::*;

    fn job(jobs: &SyncSender<Job>, work: Work, begin_by: Instant) {
        assert!(jobs.try_send(Job { password: "a password".into(), work, begin_by }).is_ok());
    }

    #[tokio::test]
    async fn only_the_password_that_was_hashed_is_right() {
        let passwords = Passwords::with(1, 4).unwrap();
        let hash = passwords.hash("correct horse".into()).await.unwrap();
        assert!(passwords.verify("correct horse".into(), &hash).await.unwrap());
        for wrong in ["", "correct horse ", "Correct horse", &"x".repeat(1_000_000)] {
            assert!(!passwords.verify(wrong.into(), &hash).await.unwrap());
        }
        assert_ne!(hash, passwords.hash("correct horse".into()).await.unwrap(), "each hash has a salt of its own");
        assert!(!hash.contains("horse"));
    }

    #[tokio::test]
    async fn a_text_longer_than_any_password_is_wrong_even_where_the_empty_one_is_right() {
        let passwords = Passwords::with(1, 4).unwrap();
        let of_nothing = hash(b"").unwrap();
        assert!(passwords.verify("".into(), &of_nothing).await.unwrap());
        assert!(!passwords.verify(Password::from("x".repeat(BYTES_MAX + 1).as_str()), &of_nothing).await.unwrap());
    }

    #[test]
    fn hashes_are_argon2id_of_at_least_the_strength_that_owasp_asks_for() {
        let text = hash(b"a password").unwrap();
        let hash = PasswordHash::new(&text).unwrap();
        assert_eq!((hash.algorithm.as_str(), hash.version), ("argon2id", Some(19)));
        // OWASP's password storage cheat sheet: at least 19 MiB, 2 passes, 1 lane.
        for (name, at_least) in [("m", 19_456), ("t", 2), ("p", 1)] {
            assert!(hash.params.get_decimal(name).unwrap() >= at_least, "{name} of {text}");
        }
        assert!(hash.salt.unwrap().len() >= 16 && hash.hash.unwrap().len() >= 32);
    }

    #[tokio::test]
    async fn nobody_has_a_password_and_checking_it_is_the_same_work() {
        let passwords = Passwords::with(1, 4).unwrap();
        assert!(!passwords.verify_nobody("a password".into()).await.unwrap());
        let (nobodys, somebodys) = (passwords.nobodys.to_string(), hash(b"a password").unwrap());
        let work = |hash: &str| PasswordHash::new(hash).unwrap().params.to_string();
        assert_eq!(work(&nobodys), work(&somebodys));
    }

    #[tokio::test]
    async fn what_is_not_a_hash_is_an_error_and_not_a_no() {
        let passwords = Passwords::with(1, 4).unwrap();
        for text in ["", "secret", "$argon2id$v=19$m=19456,t=2,p=1"] {
            let verified = passwords.verify("secret".into(), text).await;
            assert!(matches!(verified, Err(PasswordError::NotAHash)), "{text}");
        }
    }

    #[tokio::test]
    async fn beyond_its_bound_the_queue_is_busy_at_once() {
        // Nobody works, so that what is sent stays.
        let (jobs, _waiting) = sync_channel(1);
        let passwords = Passwords { jobs: jobs.clone(), nobodys: "".into() };
        let (answer, _answered) = oneshot::channel();
        job(&jobs, Work::Hash(answer), Instant::now());
        let asked = Instant::now();
        assert!(matches!(passwords.hash("a password".into()).await, Err(PasswordError::Busy)));
        assert!(asked.elapsed() < Duration::from_millis(WAIT_MS));
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_ever_for_a_thread_that_does_not_come() {
        let (jobs, _waiting) = sync_channel(1);
        let passwords = Passwords { jobs, nobodys: "".into() };
        assert!(matches!(passwords.hash("a password".into()).await, Err(PasswordError::Busy)));
    }

    #[test]
    fn what_waited_too_long_or_has_lost_its_caller_is_dropped_undone() {
        let (jobs, waiting) = sync_channel(3);
        let in_time = Instant::now() + Duration::from_secs(60);
        let (late, mut late_answered) = oneshot::channel();
        let (lost, lost_answered) = oneshot::channel();
        let (wanted, mut wanted_answered) = oneshot::channel();
        drop(lost_answered);
        job(&jobs, Work::Hash(late), Instant::now());
        // A hash that would fail to be read, were anybody to look at it.
        job(&jobs, Work::Verify { hash: "not a hash".into(), answer: lost }, in_time);
        job(&jobs, Work::Hash(wanted), in_time);
        drop(jobs);
        work(&Mutex::new(waiting));
        assert!(late_answered.try_recv().is_err());
        assert!(wanted_answered.try_recv().unwrap().is_ok());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn only_the_hashing_threads_have_a_low_priority() {
        let priority = || rustix::process::getpriority_process(None).unwrap();
        let before = priority();
        let hashing = thread::spawn(move || {
            yield_to_others();
            priority()
        });
        assert_eq!(hashing.join().unwrap(), NICE.max(before));
        assert_eq!(priority(), before);
    }

    #[test]
    fn a_new_password_is_judged_by_its_length_and_by_what_is_tried_first() {
        for (password, expected) in [
            ("", Err(Unfit::TooShort)),
            ("1234567", Err(Unfit::TooShort)),
            ("ÄÖÜäöüß", Err(Unfit::TooShort)),
            ("ÄÖÜäöüßẞ", Ok(())),
            ("souk-demo", Ok(())),
            ("password", Err(Unfit::TooCommon)),
            ("PassWord1", Err(Unfit::TooCommon)),
            ("xxxxxxxxxxxxx", Err(Unfit::TooCommon)),
            ("shopper1@souk.test", Err(Unfit::IsTheEmail)),
            ("Shopper1@Souk.Test", Err(Unfit::IsTheEmail)),
            ("shopper1", Err(Unfit::IsTheEmail)),
            ("only small letters and spaces", Ok(())),
            (&"ab".repeat(64), Ok(())),
            (&"ab".repeat(65), Err(Unfit::TooLong)),
        ] {
            assert_eq!(Password::from(password).fits(" Shopper1@souk.test"), expected, "{password}");
        }
    }

    #[test]
    fn the_list_of_common_passwords_holds_what_length_alone_lets_pass() {
        assert!(COMMON.len() > 100);
        for password in COMMON.iter() {
            assert_eq!(*password, password.to_lowercase());
            assert!(password.chars().count() >= NEW_CHARS_MIN, "{password}");
        }
    }

    #[test]
    fn a_password_does_not_show_itself() {
        let password: Password = serde_json::from_str(r#""correct horse""#).unwrap();
        assert_eq!(format!("{password:?}"), "Password(…)");
    }
}
