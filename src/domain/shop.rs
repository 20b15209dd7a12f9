//! A shop: what a vendor sells under. One for each account, which is asked before the shop opens.
//!
//! Everything here is meant to be seen by everybody; what is personal to its owner must never come here.

use serde::{Deserialize, Serialize};

use super::{CommandId, Context, Debt, Decision, Entity, User, turn, user};

type Turn = turn::Turn<Shop>;

pub const NAME_CHARS_MAX: usize = 100;
pub const DESCRIPTION_CHARS_MAX: usize = 10_000;

pub struct Shop;

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Its own id, under which its owner remembers it.
    pub id: String,
    pub phase: Phase,
    /// The account's id.
    pub owner: String,
    pub content: Content,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    #[default]
    Absent,
    /// Waits for its owner's account; not shown.
    Opening {
        command: CommandId,
    },
    Open,
    /// The account has another shop, or is none. Never opens.
    Refused,
    /// Its owner's account was deleted.
    Closed,
}

/// Everything of a shop that its vendor writes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Content {
    pub name: String,
    pub description: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Command {
    /// Answered when the owner's account has spoken.
    Open {
        owner: String,
        content: Content,
    },
    /// Replaces the content. The same content again changes nothing.
    Update {
        content: Content,
    },
    /// Asked by the account of its owner, which was deleted.
    Close,
    HeardAttached,
    /// `other`: the shop that the account has already; `None` when there is no such account.
    HeardNotAttached {
        other: Option<String>,
    },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Reply {
    Opened,
    Updated,
    Unchanged,
    Closed,
    Noted,
}

#[derive(Debug, Clone, PartialEq, thiserror::Error, Serialize, Deserialize)]
pub enum Rejection {
    #[error("no such shop")]
    Unknown,
    #[error("the shop exists already")]
    Exists,
    /// `field`: a JSON Pointer into the content.
    #[error("{field}: {message}")]
    Invalid { field: String, message: String },
    #[error("this account has the shop {shop} already")]
    OwnerHasShop { shop: String },
    #[error("there is no account that could own the shop")]
    OwnerUnknown,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", content = "data")]
pub enum Event {
    /// The shop is written down and asks its owner's account.
    #[serde(rename = "shop.opening.requested")]
    OpeningRequested { id: String, command: CommandId, owner: String, content: Content },
    #[serde(rename = "shop.opening.refused")]
    OpeningRefused { other: Option<String> },
    /// Open. Carries the content for whoever follows.
    #[serde(rename = "shop.created")]
    Created { owner: String, content: Content },
    #[serde(rename = "shop.updated")]
    Updated { content: Content },
    #[serde(rename = "shop.closed")]
    Closed,
}

impl Entity for Shop {
    const KIND: &'static str = "shop";
    const SNAPSHOT_FORMAT: u32 = 1;

    type State = State;
    type Command = Command;
    type Event = Event;
    type Reply = Reply;
    type Rejection = Rejection;

    fn decide(state: &State, command: Command, context: &Context<'_>) -> Result<Decision<Self>, Rejection> {
        match command {
            Command::Open { owner, content } => state.open(owner, content, context),
            Command::Update { content } => state.update(content),
            Command::Close => Ok(state.close()),
            Command::HeardAttached => Ok(state.heard_attached()),
            Command::HeardNotAttached { other } => Ok(state.heard_not_attached(other)),
        }
    }

    fn evolve(state: &mut State, event: &Event) {
        match event {
            Event::OpeningRequested { id, command, owner, content } => {
                state.id.clone_from(id);
                state.phase = Phase::Opening { command: command.clone() };
                state.owner.clone_from(owner);
                state.content = content.clone();
            }
            Event::OpeningRefused { .. } => state.phase = Phase::Refused,
            Event::Created { owner, content } => {
                state.phase = Phase::Open;
                state.owner.clone_from(owner);
                state.content = content.clone();
            }
            Event::Updated { content } => state.content = content.clone(),
            Event::Closed => state.phase = Phase::Closed,
        }
    }

    fn owes(state: &State) -> Vec<Debt<Self>> {
        let Phase::Opening { .. } = state.phase else { return Vec::new() };
        let attach = user::Command::AttachShop { shop: state.id.clone() };
        vec![Debt::tell::<User>("attach", &state.owner, attach, |answer| {
            Some(match answer {
                Ok(_) => Command::HeardAttached,
                Err(user::Rejection::HasShop { shop }) => Command::HeardNotAttached { other: Some(shop) },
                Err(_) => Command::HeardNotAttached { other: None },
            })
        })]
    }

    fn is_at_rest(state: &State) -> bool {
        matches!(state.phase, Phase::Refused | Phase::Closed)
    }
}

impl State {
    pub fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    fn open(&self, owner: String, content: Content, context: &Context<'_>) -> Result<Decision<Shop>, Rejection> {
        if self.phase != Phase::Absent {
            return Err(Rejection::Exists);
        }
        content.check()?;
        let (id, command) = (context.id.to_owned(), context.command.clone());
        Ok(Decision::later(vec![Event::OpeningRequested { id, command, owner, content }]))
    }

    fn update(&self, content: Content) -> Result<Decision<Shop>, Rejection> {
        if !self.is_open() {
            return Err(Rejection::Unknown);
        }
        content.check()?;
        Ok(match content == self.content {
            true => Decision::now(Vec::new(), Reply::Unchanged),
            false => Decision::now(vec![Event::Updated { content }], Reply::Updated),
        })
    }

    /// Also while it opens: the account may have said yes and been deleted before the shop heard of it.
    fn close(&self) -> Decision<Shop> {
        let mut turn = Turn::on(self);
        if let Phase::Opening { command } = &self.phase {
            turn.settle(command.clone(), Err(Rejection::OwnerUnknown));
        }
        if matches!(self.phase, Phase::Opening { .. } | Phase::Open) {
            turn.emit(Event::Closed);
        }
        turn.now(Reply::Closed)
    }

    fn heard_attached(&self) -> Decision<Shop> {
        let mut turn = Turn::on(self);
        if let Phase::Opening { command } = &self.phase {
            turn.emit(Event::Created { owner: self.owner.clone(), content: self.content.clone() });
            turn.settle(command.clone(), Ok(Reply::Opened));
        }
        turn.now(Reply::Noted)
    }

    fn heard_not_attached(&self, other: Option<String>) -> Decision<Shop> {
        let mut turn = Turn::on(self);
        if let Phase::Opening { command } = &self.phase {
            let rejection = match &other {
                Some(shop) => Rejection::OwnerHasShop { shop: shop.clone() },
                None => Rejection::OwnerUnknown,
            };
            turn.emit(Event::OpeningRefused { other });
            turn.settle(command.clone(), Err(rejection));
        }
        turn.now(Reply::Noted)
    }
}

impl Content {
    fn check(&self) -> Result<(), Rejection> {
        let invalid = |field: &str, message: String| Rejection::Invalid { field: field.to_owned(), message };
        if self.name.trim().is_empty() || self.name.chars().count() > NAME_CHARS_MAX {
            return Err(invalid("/name", format!("must have 1 to {NAME_CHARS_MAX} characters, not only spaces")));
        }
        if self.name.chars().any(char::is_control) {
            return Err(invalid("/name", "must be printable".to_owned()));
        }
        if self.description.chars().count() > DESCRIPTION_CHARS_MAX {
            return Err(invalid("/description", format!("must have at most {DESCRIPTION_CHARS_MAX} characters")));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::testing::{Given, command_id, given};

    const OWNER: &str = "usr_1";

    fn content(name: &str) -> Content {
        Content { name: name.to_owned(), description: "Lanterns and lamps.".to_owned() }
    }

    fn open(name: &str) -> Command {
        Command::Open { owner: OWNER.to_owned(), content: content(name) }
    }

    fn requested() -> Event {
        Event::OpeningRequested {
            id: "me".to_owned(),
            command: command_id("c"),
            owner: OWNER.to_owned(),
            content: content("Lamps"),
        }
    }

    fn created() -> Event {
        Event::Created { owner: OWNER.to_owned(), content: content("Lamps") }
    }

    fn shop(events: impl IntoIterator<Item = Event>) -> Given<Shop> {
        given(events)
    }

    #[test]
    fn it_opens_when_its_owners_account_has_no_other() {
        let opening = shop([]).when(open("Lamps")).then_later(vec![requested()]).owing(&["attach"]).and();
        opening.when(open("Lamps")).then_refused(Rejection::Exists);
        opening.when(Command::Update { content: content("New") }).then_refused(Rejection::Unknown);
        let opened = opening.when(Command::HeardAttached).then(vec![created()], Reply::Noted).owing(&[]);
        let opened = opened.settles(vec![(command_id("c"), Ok(Reply::Opened))]).and();
        opened.when(Command::HeardAttached).then_nothing_but(Reply::Noted);
        opened.when(Command::HeardNotAttached { other: None }).then_nothing_but(Reply::Noted);
    }

    #[test]
    fn it_never_opens_when_its_owner_has_another_shop_or_no_account() {
        for (other, rejection) in
            [(Some("shop_2".to_owned()), Rejection::OwnerHasShop { shop: "shop_2".to_owned() }), (None, Rejection::OwnerUnknown)]
        {
            let refused = shop([requested()]).when(Command::HeardNotAttached { other: other.clone() });
            let refused = refused.then(vec![Event::OpeningRefused { other }], Reply::Noted).owing(&[]);
            let refused = refused.settles(vec![(command_id("c"), Err(rejection))]).and();
            refused.when(Command::HeardAttached).then_nothing_but(Reply::Noted);
            refused.when(open("Lamps")).then_refused(Rejection::Exists);
            refused.when(Command::Close).then_nothing_but(Reply::Closed);
        }
    }

    #[test]
    fn its_content_is_replaced_as_a_whole() {
        let opened = shop([requested(), created()]);
        opened.when(Command::Update { content: content("Lamps") }).then_nothing_but(Reply::Unchanged);
        let updated = Event::Updated { content: content("New") };
        opened.when(Command::Update { content: content("New") }).then(vec![updated], Reply::Updated);
    }

    #[test]
    fn it_closes_with_its_owners_account_also_while_it_opens() {
        let closed = shop([requested(), created()]).when(Command::Close).then(vec![Event::Closed], Reply::Closed).and();
        closed.when(Command::Close).then_nothing_but(Reply::Closed);
        closed.when(Command::Update { content: content("New") }).then_refused(Rejection::Unknown);
        let early = shop([requested()]).when(Command::Close).then(vec![Event::Closed], Reply::Closed).owing(&[]);
        let early = early.settles(vec![(command_id("c"), Err(Rejection::OwnerUnknown))]).and();
        early.when(Command::HeardAttached).then_nothing_but(Reply::Noted);
        shop([]).when(Command::Close).then_nothing_but(Reply::Closed);
    }

    #[test]
    fn a_name_is_printable_and_neither_empty_nor_long() {
        for (name, description) in [("", ""), ("  ", ""), (&*"x".repeat(101), ""), ("a\nb", ""), ("Lamps", &*"x".repeat(10_001))]
        {
            let content = Content { name: name.to_owned(), description: description.to_owned() };
            let refused = shop([]).when(Command::Open { owner: OWNER.to_owned(), content: content.clone() });
            assert!(matches!(refused.result, Err(Rejection::Invalid { .. })), "{name:?}");
            let refused = shop([requested(), created()]).when(Command::Update { content });
            assert!(matches!(refused.result, Err(Rejection::Invalid { .. })), "{name:?}");
        }
        shop([]).when(open(&"é".repeat(100))).decision();
    }
}
