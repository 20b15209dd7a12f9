//! The payment providers of this node, each behind a breaker of its own.
//!
//! A provider that is out is answered for here, at once and without a call: [`ProviderAnswer::Unavailable`], which leaves the
//! step owed, to be asked for again under the same key. This must never answer anything else in a provider's place: a
//! payment that was neither approved nor declined there is neither here.

use std::collections::BTreeMap;

use futures_util::future::BoxFuture;

use super::breaker::{Breaker, Census, Outcome, Settings};
use super::{Call, Integration};
use crate::domain::payment::{Provider, ProviderAnswer, ProviderRequest};

type Carry = Box<dyn Fn(ProviderRequest, Call) -> BoxFuture<'static, ProviderAnswer> + Send + Sync>;

/// Carries requests to the provider that they name.
#[derive(Default)]
pub struct PaymentProviders {
    by_name: BTreeMap<&'static str, Guarded>,
}

struct Guarded {
    carry: Carry,
    breaker: Breaker,
}

impl PaymentProviders {
    /// Adds a provider under the name that checkouts know it by.
    pub fn with(self, name: &'static str, provider: impl Integration<Provider> + Clone) -> Self {
        self.with_settings(name, provider, Settings::default())
    }

    pub fn with_settings(mut self, name: &'static str, provider: impl Integration<Provider> + Clone, settings: Settings) -> Self {
        let carry: Carry = Box::new(move |request, call| {
            let provider = provider.clone();
            Box::pin(async move { provider.carry(request, call).await })
        });
        self.by_name.insert(name, Guarded { carry, breaker: Breaker::new(name, settings) });
        self
    }

    /// How the breakers stand.
    pub fn breakers(&self) -> impl Iterator<Item = Census> {
        self.by_name.values().map(|guarded| guarded.breaker.census())
    }
}

impl Integration<Provider> for PaymentProviders {
    async fn carry(&self, request: ProviderRequest, call: Call) -> ProviderAnswer {
        let Some(Guarded { carry, breaker }) = self.by_name.get(request.provider.as_str()) else {
            return ProviderAnswer::Declined { reason: format!("there is no payment provider {:?} here", request.provider) };
        };
        let (provider, payment) = (request.provider.clone(), request.payment.clone());
        match breaker.call(&payment, || carry(request, call), outcome).await {
            Ok(answer) => answer,
            Err(refusal) => ProviderAnswer::Unavailable { reason: format!("{provider}: {refusal}") },
        }
    }
}

/// A decline is an answer: the provider works.
fn outcome(answer: &ProviderAnswer) -> Outcome {
    match answer {
        ProviderAnswer::Approved { .. } | ProviderAnswer::Declined { .. } => Outcome::Worked,
        ProviderAnswer::Unavailable { .. } => Outcome::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::payment::ProviderStep;
    use crate::domain::{Currency, Money};
    use crate::integrations::breaker::State;
    use crate::integrations::sandbox::{self, Sandbox};

    async fn authorize(providers: &PaymentProviders, provider: &str, payment: &str, token: &str) -> ProviderAnswer {
        let step = ProviderStep::Authorize { amount: Money::new(1, Currency::EUR), token: token.into() };
        let request = ProviderRequest { provider: provider.into(), payment: payment.into(), step };
        providers.carry(request, Call::new("key", "trace")).await
    }

    #[tokio::test]
    async fn a_provider_that_is_not_here_declines() {
        let providers = PaymentProviders::default().with(sandbox::NAME, Sandbox);
        assert!(matches!(authorize(&providers, "acme", "pay_1", "tok_ok").await, ProviderAnswer::Declined { .. }));
        assert!(matches!(authorize(&providers, "sandbox", "pay_1", "tok_ok").await, ProviderAnswer::Approved { .. }));
    }

    #[tokio::test(start_paused = true)]
    async fn a_payment_that_always_fails_leaves_the_door_open_for_others_and_many_close_it() {
        let providers = PaymentProviders::default().with(sandbox::NAME, Sandbox);
        let state = || providers.breakers().next().unwrap().state;
        for _ in 0..100 {
            assert!(matches!(authorize(&providers, "sandbox", "pay_1", "tok_error").await, ProviderAnswer::Unavailable { .. }));
        }
        assert_eq!(state(), State::Closed);
        assert!(matches!(authorize(&providers, "sandbox", "pay_2", "tok_declined").await, ProviderAnswer::Declined { .. }));
        for payment in ["pay_3", "pay_4", "pay_5", "pay_6", "pay_7"] {
            authorize(&providers, "sandbox", payment, "tok_error").await;
        }
        assert_eq!(state(), State::Open);
        let refused = authorize(&providers, "sandbox", "pay_8", "tok_ok").await;
        assert!(matches!(&refused, ProviderAnswer::Unavailable { reason } if reason.contains("left alone")), "{refused:?}");
        // However often those that failed come back, one that did not is let through first.
        tokio::time::advance(std::time::Duration::from_secs(1)).await;
        for payment in ["pay_3", "pay_4", "pay_5"] {
            authorize(&providers, "sandbox", payment, "tok_error").await;
        }
        assert!(matches!(authorize(&providers, "sandbox", "pay_8", "tok_ok").await, ProviderAnswer::Approved { .. }));
        assert_eq!(state(), State::Closed);
    }
}
