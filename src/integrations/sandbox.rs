//! The built-in payment provider: no money moves, and the token says what happens.
//!
//! What it answers depends on the request alone, so a repeat under the same key is answered as the first time, also after
//! a restart. It must never be reachable in a shop that takes real money except by its own name.

use std::time::Duration;

use super::{Call, Integration};
use crate::domain::payment::{Provider, ProviderAnswer, ProviderRequest, ProviderStep};

/// The provider's name in a checkout.
pub const NAME: &str = "sandbox";
/// How long `tok_slow` takes.
const SLOW: Duration = Duration::from_secs(3);

#[derive(Debug, Clone, Copy)]
pub struct Sandbox;

impl Integration<Provider> for Sandbox {
    async fn carry(&self, request: ProviderRequest, call: Call) -> ProviderAnswer {
        let approved = || ProviderAnswer::Approved { reference: format!("sandbox:{}", call.key) };
        let ProviderStep::Authorize { token, .. } = request.step else {
            return approved();
        };
        match token.as_str() {
            "tok_ok" => approved(),
            "tok_slow" => {
                tokio::time::sleep(SLOW).await;
                approved()
            }
            "tok_error" => ProviderAnswer::Unavailable { reason: "the sandbox plays an outage".into() },
            "tok_declined" => ProviderAnswer::Declined { reason: "the card was declined".into() },
            _ => ProviderAnswer::Declined { reason: "the sandbox knows no such token".into() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Currency, Money};

    async fn authorize(token: &str) -> ProviderAnswer {
        let step = ProviderStep::Authorize { amount: Money::new(1, Currency::EUR), token: token.into() };
        Sandbox.carry(ProviderRequest { provider: NAME.into(), payment: "pay_1".into(), step }, Call::new("key", "trace")).await
    }

    #[tokio::test]
    async fn the_token_says_what_happens() {
        let approved = ProviderAnswer::Approved { reference: "sandbox:key".into() };
        assert_eq!(authorize("tok_ok").await, approved);
        assert_eq!(authorize("tok_slow").await, approved);
        assert!(matches!(authorize("tok_declined").await, ProviderAnswer::Declined { .. }));
        assert!(matches!(authorize("tok_error").await, ProviderAnswer::Unavailable { .. }));
        assert!(matches!(authorize("tok_other").await, ProviderAnswer::Declined { .. }));
    }
}
