//! The proof of work that a sale may ask of each claim: cheap for a shopper, dear for whoever claims by the thousand.
//!
//! Nothing of it is kept. A challenge names the sale, who may use it, how hard it is and until when it counts, under a MAC
//! of the installation's secret; a proof is the challenge with a nonce such that SHA-256(challenge "." nonce) begins with
//! that many zero bits. So any node can verify what another one gave out. A proof counts until its challenge runs out, for
//! one customer in one sale, where the limit of that customer bounds what it can buy. It must never count for more bits
//! than were worked for.

use schemars::JsonSchema;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::identity::secret::Secret;
use crate::actors::credential::same;
use crate::domain::Timestamp;
use crate::domain::flash_sale::Customer;
use crate::domain::time::MINUTE_MS;

/// How long a challenge can be worked on.
pub const CHALLENGE_MS: i64 = 2 * MINUTE_MS;
pub const CHALLENGE_CHARS_MAX: usize = 256;
pub const NONCE_CHARS_MAX: usize = 64;
const PURPOSE: &[u8] = b"claim challenge";

/// The work that was done.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "ProofOfWork")]
pub struct Proof {
    /// As it was given out.
    #[schemars(length(max = CHALLENGE_CHARS_MAX))]
    pub challenge: String,
    /// Such that SHA-256 of the challenge, a full stop and the nonce begins with as many zero bits as asked for.
    #[schemars(length(max = NONCE_CHARS_MAX))]
    pub nonce: String,
}

impl Proof {
    /// Its fields as a claim's body has them, and the characters that each may have.
    pub fn texts(&self) -> [(&'static str, &str, usize); 2] {
        [("/proof/challenge", &self.challenge, CHALLENGE_CHARS_MAX), ("/proof/nonce", &self.nonce, NONCE_CHARS_MAX)]
    }
}

/// Why a proof does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    #[error("this challenge was not given out here")]
    Foreign,
    #[error("this challenge is for another sale or customer")]
    OfAnother,
    #[error("this challenge has run out")]
    Expired,
    #[error("this challenge is easier than what is asked for now")]
    TooEasy,
    #[error("the hash of challenge and nonce does not begin with that many zero bits")]
    NotDone,
}

/// Something to work on, and until when.
pub fn challenge(secret: &Secret, sale: &str, customer: Customer, bits: u8, now: Timestamp) -> (String, Timestamp) {
    let expires_at = now.plus_ms(CHALLENGE_MS);
    let text = format!("{sale}.{customer}.{bits}.{}", expires_at.as_millis());
    let mac = secret.derive(&[PURPOSE, text.as_bytes()]);
    (format!("{text}.{mac}"), expires_at)
}

/// Whether this customer has worked for at least this many bits, in this sale and lately.
pub fn verify(
    secret: &Secret,
    sale: &str,
    customer: Customer,
    bits: u8,
    now: Timestamp,
    proof: &Proof,
) -> Result<(), ProofError> {
    let (text, mac) = proof.challenge.rsplit_once('.').ok_or(ProofError::Foreign)?;
    if !same(secret.derive(&[PURPOSE, text.as_bytes()]).as_bytes(), mac.as_bytes()) {
        return Err(ProofError::Foreign);
    }
    let mut parts = text.split('.');
    let (of, whose) = (parts.next(), parts.next());
    let mut number = || parts.next().and_then(|part| part.parse::<i64>().ok()).ok_or(ProofError::Foreign);
    let (worked_for, expires_at) = (number()?, number()?);
    if of != Some(sale) || whose != Some(customer.to_string().as_str()) {
        return Err(ProofError::OfAnother);
    }
    if Timestamp::from_millis(expires_at) <= now {
        return Err(ProofError::Expired);
    }
    if worked_for < i64::from(bits) {
        return Err(ProofError::TooEasy);
    }
    let hash = Sha256::new().chain_update(&proof.challenge).chain_update(".").chain_update(&proof.nonce).finalize();
    if zero_bits(&hash) < u32::from(bits) {
        return Err(ProofError::NotDone);
    }
    Ok(())
}

/// How many zero bits it begins with.
fn zero_bits(hash: &[u8]) -> u32 {
    let zeros = hash.iter().take_while(|byte| **byte == 0).count();
    zeros as u32 * 8 + hash.get(zeros).map_or(0, |byte| byte.leading_zeros())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::order::Owner;

    const SALE: &str = "fs_01ARZ3NDEKTSV4RRFFQ69G5FAV";
    const BITS: u8 = 8;

    fn customer(digit: &str) -> Customer {
        Customer::of(&Owner::Guest { token_sha256: digit.repeat(64) }).unwrap()
    }

    fn work(challenge: &str, bits: u8) -> Proof {
        let proof = |nonce: u32| Proof { challenge: challenge.to_owned(), nonce: nonce.to_string() };
        let hash = |proof: &Proof| Sha256::digest(format!("{}.{}", proof.challenge, proof.nonce));
        (0..).map(proof).find(|proof| zero_bits(&hash(proof)) >= u32::from(bits)).unwrap()
    }

    #[test]
    fn work_counts_for_its_sale_its_customer_its_bits_and_its_time() {
        let (secret, me, now) = (Secret::new(&[7; 32]), customer("1"), Timestamp::from_millis(1_000));
        let (text, expires_at) = challenge(&secret, SALE, me, BITS, now);
        assert_eq!(expires_at, now.plus_ms(CHALLENGE_MS));
        assert!(text.len() <= CHALLENGE_CHARS_MAX, "{}", text.len());
        let proof = work(&text, BITS);
        let verify = |secret: &Secret, sale, customer, bits, now| verify(secret, sale, customer, bits, now, &proof);
        assert_eq!(verify(&secret, SALE, me, BITS, now), Ok(()));
        assert_eq!(verify(&secret, SALE, me, BITS - 1, now), Ok(()), "more than is asked for now");
        assert_eq!(verify(&secret, SALE, me, BITS + 1, now), Err(ProofError::TooEasy));
        let other = "fs_01ARZ3NDEKTSV4RRFFQ69G5FAW";
        assert_eq!(verify(&secret, other, me, BITS, now), Err(ProofError::OfAnother));
        assert_eq!(verify(&secret, SALE, customer("2"), BITS, now), Err(ProofError::OfAnother));
        assert_eq!(verify(&secret, SALE, me, BITS, expires_at), Err(ProofError::Expired));
        assert_eq!(verify(&Secret::new(&[8; 32]), SALE, me, BITS, now), Err(ProofError::Foreign));
    }

    #[test]
    fn what_was_not_worked_for_or_not_given_out_does_not_count() {
        let (secret, me, now) = (Secret::new(&[7; 32]), customer("1"), Timestamp::from_millis(1_000));
        let (text, _) = challenge(&secret, SALE, me, BITS, now);
        let verify = |challenge: &str, nonce: &str| {
            verify(&secret, SALE, me, BITS, now, &Proof { challenge: challenge.into(), nonce: nonce.into() })
        };
        let idle = (0..).map(|nonce: u32| nonce.to_string()).find(|nonce| verify(&text, nonce) == Err(ProofError::NotDone));
        assert!(idle.is_some());
        let easier = text.replace(".8.", ".0.");
        let longer = format!("{text}0");
        for foreign in ["", ".", "....", easier.as_str(), longer.as_str(), text.get(1..).unwrap()] {
            assert_eq!(verify(foreign, "0"), Err(ProofError::Foreign), "{foreign}");
        }
    }

    #[test]
    fn zero_bits_are_counted_from_the_front() {
        for (hash, bits) in [(&[0xff_u8, 0][..], 0), (&[0x7f], 1), (&[0, 0x10], 11), (&[0, 0], 16), (&[], 0)] {
            assert_eq!(zero_bits(hash), bits, "{hash:?}");
        }
    }
}
