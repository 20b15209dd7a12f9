//! A payment: one authorization of one order's total at one provider, then its capture, void or refund.
//!
//! The provider is owed each step under a stable key, so that a step whose outcome is unknown is asked for again and
//! never carried out twice.

use serde::{Deserialize, Serialize};

use super::{CommandId, Money, Outside};

pub struct Payment;

/// The payment providers, as the domain sees them.
pub struct Provider;

impl Outside for Provider {
    const NAME: &'static str = "payment-provider";
    type Request = ProviderRequest;
    type Answer = ProviderAnswer;
}

#[derive(Debug, Clone, PartialEq)]
pub struct ProviderRequest {
    /// The provider's name, e.g. `sandbox`.
    pub provider: String,
    /// Our payment's id: what capture, void and refund refer to.
    pub payment: String,
    pub step: ProviderStep,
}

#[derive(Debug, Clone, PartialEq)]
pub enum ProviderStep {
    Authorize {
        amount: Money,
        token: String,
    },
    Capture {
        amount: Money,
    },
    /// Ends whatever was authorized for this payment, also when nothing was.
    Void,
    Refund {
        amount: Money,
    },
}

#[derive(Debug, Clone, PartialEq)]
pub enum ProviderAnswer {
    Approved {
        reference: String,
    },
    Declined {
        reason: String,
    },
    /// An outage or an unknown outcome: ask again with the same key.
    Unavailable {
        reason: String,
    },
}

/// How a shopper pays.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Method {
    pub provider: String,
    pub token: String,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    pub order: String,
    pub amount: Option<Money>,
    pub method: Option<Method>,
    pub phase: Phase,
    /// The provider's reference of the authorization.
    pub reference: Option<String>,
    /// Why it was declined.
    pub reason: Option<String>,
    /// The command whose caller waits for the step under way.
    pub waiting: Option<CommandId>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    #[default]
    Absent,
    Authorizing,
    Authorized,
    Declined,
    Capturing,
    Captured,
    CaptureFailed,
    Voiding,
    Voided,
    Refunding,
    Refunded,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Command {
    /// Answered when the provider has spoken.
    Authorize {
        order: String,
        amount: Money,
        method: Method,
    },
    Capture,
    Void,
    Refund,
    HeardApproved {
        step: Step,
        reference: String,
    },
    HeardDeclined {
        step: Step,
        reason: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    Authorize,
    Capture,
    Void,
    Refund,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Reply {
    Authorized,
    Declined { reason: String },
    Captured,
    CaptureFailed { reason: String },
    Voided,
    Refunded,
    Noted,
}

#[derive(Debug, Clone, PartialEq, thiserror::Error, Serialize, Deserialize)]
pub enum Rejection {
    #[error("the payment is {phase:?} and cannot take this step")]
    OutOfOrder { phase: Phase },
    #[error("the payment was made for another order or amount")]
    Differs,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", content = "data")]
pub enum Event {
    #[serde(rename = "payment.created")]
    Created { command: CommandId, order: String, amount: Money, method: Method },
    #[serde(rename = "payment.authorized")]
    Authorized { reference: String },
    #[serde(rename = "payment.capture_requested")]
    CaptureRequested { command: CommandId },
    /// Captured: the money is ours.
    #[serde(rename = "payment.success")]
    Captured { reference: String, amount: Money },
    /// Declined at authorization or capture; nothing was taken.
    #[serde(rename = "payment.failed")]
    Failed { step: Step, reason: String },
    #[serde(rename = "payment.void_requested")]
    VoidRequested { command: CommandId },
    #[serde(rename = "payment.voided")]
    Voided,
    #[serde(rename = "payment.refund_requested")]
    RefundRequested { command: CommandId },
    #[serde(rename = "payment.refunded")]
    Refunded { reference: String, amount: Money },
}
