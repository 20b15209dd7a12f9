//! Whether what many clients saw of one thing can have happened one step after the other, each step at some moment between
//! its request and its answer.
//!
//! The search of Wing and Gong: of the calls that were under way at a moment, any may have been the next step; take one, go
//! on, and come back when the rest does not fit. With Lowe's memory: a set of steps that has led to a state is not looked at
//! twice. Each thing (each sku) is judged by itself, which is allowed because linearizability is local.
//!
//! The verdict is never guessed: a search that grows past its bound says that it could not decide.

use std::collections::HashSet;
use std::hash::Hash;

/// What a thing does, one step at a time. A step carries the answer that its client got.
pub trait Model {
    type State: Clone + Eq + Hash + std::fmt::Debug;
    type Step: std::fmt::Debug;

    fn initial(&self) -> Self::State;

    /// The states that the step may leave, given its answer; none when it cannot have been answered so in this state.
    fn apply(&self, state: &Self::State, step: &Self::Step) -> Vec<Self::State>;
}

/// By when a call took effect, as far as its client knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Before its answer, which came then.
    By(u64),
    /// It did, at any time after its request.
    Sometime,
    /// Nobody knows: at any time after its request, or never.
    Perhaps,
}

impl Effect {
    fn deadline(self) -> u64 {
        match self {
            Effect::By(us) => us,
            Effect::Sometime | Effect::Perhaps => u64::MAX,
        }
    }
}

#[derive(Debug, Clone)]
pub struct Call<S> {
    pub step: S,
    pub asked_us: u64,
    pub effect: Effect,
    /// The call that this one is a consequence of, by its place in the list: it has its effect later.
    pub after: Option<usize>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Linearizable,
    /// `explained`: the longest run of steps that fits; `stuck`: the call whose answer nothing explains after them, by its
    /// place in the list.
    Not {
        explained: usize,
        stuck: usize,
        state: String,
    },
    Undecided {
        looked_at: usize,
    },
}

/// A call's way into and out of the time line.
#[derive(Clone, Copy, PartialEq)]
enum Edge {
    Asked(usize),
    Answered(usize),
}

/// The time line of what is not explained yet, as a doubly linked list: taking a call out and putting it back costs
/// nothing, if it is put back in the reverse order.
struct TimeLine {
    edges: Vec<Edge>,
    next: Vec<usize>,
    previous: Vec<usize>,
    /// Where each call's edges are; who may never have taken effect has no answer.
    places: Vec<(usize, Option<usize>)>,
}

impl TimeLine {
    const HEAD: usize = 0;

    fn new<S>(calls: &[Call<S>]) -> Self {
        let mut times: Vec<(u64, bool, usize)> = Vec::with_capacity(calls.len() * 2);
        for (index, call) in calls.iter().enumerate() {
            times.push((call.asked_us, false, index));
            match call.effect {
                Effect::By(_) | Effect::Sometime => times.push((call.effect.deadline(), true, index)),
                Effect::Perhaps => {}
            }
        }
        // What happens in the same microsecond counts as concurrent.
        times.sort_unstable();
        let mut places = vec![(0, None); calls.len()];
        let mut edges = vec![Edge::Asked(usize::MAX)];
        for (place, (_, is_answer, index)) in (1..).zip(times) {
            match is_answer {
                false => {
                    places[index].0 = place;
                    edges.push(Edge::Asked(index));
                }
                true => {
                    places[index].1 = Some(place);
                    edges.push(Edge::Answered(index));
                }
            }
        }
        let count = edges.len();
        TimeLine {
            edges,
            next: (0..count).map(|place| (place + 1) % count).collect(),
            previous: (0..count).map(|place| (place + count - 1) % count).collect(),
            places,
        }
    }

    fn unlink(&mut self, place: usize) {
        let (before, after) = (self.previous[place], self.next[place]);
        self.next[before] = after;
        self.previous[after] = before;
    }

    fn link(&mut self, place: usize) {
        let (before, after) = (self.previous[place], self.next[place]);
        self.next[before] = place;
        self.previous[after] = place;
    }

    fn take_out(&mut self, call: usize) {
        let (asked, answered) = self.places[call];
        self.unlink(asked);
        answered.into_iter().for_each(|place| self.unlink(place));
    }

    fn put_back(&mut self, call: usize) {
        let (asked, answered) = self.places[call];
        answered.into_iter().for_each(|place| self.link(place));
        self.link(asked);
    }

    /// The calls of which one must be the next step, and the one among them that is answered first.
    fn under_way(&self) -> (Vec<usize>, Option<usize>) {
        let mut calls = Vec::new();
        let mut place = self.next[Self::HEAD];
        while place != Self::HEAD {
            match self.edges[place] {
                Edge::Asked(call) => calls.push(call),
                Edge::Answered(call) => return (calls, Some(call)),
            }
            place = self.next[place];
        }
        (calls, None)
    }
}

/// A step taken, and what else could be taken in its place.
struct Taken<T> {
    call: usize,
    before: T,
    /// Last one first.
    instead: Vec<(usize, T)>,
}

/// Judges the calls on one thing. `looks_max`: how many pairs of a set of steps and a state may be looked at.
pub fn judge<M: Model>(model: &M, calls: &[Call<M::Step>], looks_max: usize) -> Verdict {
    let mut time_line = TimeLine::new(calls);
    // A set of steps is known by the sum of its members' numbers: 128 random bits each, so that two sets share one with
    // less than one chance in 10^20 for a billion sets.
    let mut random = fastrand::Rng::with_seed(0x0050_756b);
    let numbers: Vec<u128> = calls.iter().map(|_| random.u128(..)).collect();
    let mut set = 0_u128;
    let mut is_taken = vec![false; calls.len()];
    let mut seen: HashSet<(u128, M::State)> = HashSet::new();
    let mut taken: Vec<Taken<M::State>> = Vec::new();
    let mut state = model.initial();
    let mut deepest: Option<Verdict> = None;
    let mut deepest_explained = 0;
    loop {
        let (under_way, most_urgent) = time_line.under_way();
        // Without an answer left to explain, whatever may have happened need not have.
        let Some(most_urgent) = most_urgent else { return Verdict::Linearizable };
        if deepest.is_none() || taken.len() > deepest_explained {
            deepest_explained = taken.len();
            let state = format!("{state:?}");
            deepest = Some(Verdict::Not { explained: taken.len(), stuck: most_urgent, state });
        }
        let mut instead = Vec::new();
        for call in under_way {
            if calls[call].after.is_none_or(|cause| is_taken[cause]) {
                instead.extend(model.apply(&state, &calls[call].step).into_iter().map(|next| (call, next)));
            }
        }
        // Whatever is answered soonest is tried first, so that what has time is left for when it is needed.
        instead.sort_by_key(|(call, _)| std::cmp::Reverse((calls[*call].effect.deadline(), *call)));
        loop {
            if let Some((call, next)) = instead.pop() {
                let with = set ^ numbers[call];
                if !seen.insert((with, next.clone())) {
                    continue;
                }
                if seen.len() > looks_max {
                    return Verdict::Undecided { looked_at: seen.len() };
                }
                time_line.take_out(call);
                is_taken[call] = true;
                set = with;
                taken.push(Taken { call, before: std::mem::replace(&mut state, next), instead });
                break;
            }
            let Some(last) = taken.pop() else {
                return deepest.unwrap_or(Verdict::Linearizable);
            };
            time_line.put_back(last.call);
            is_taken[last.call] = false;
            set ^= numbers[last.call];
            state = last.before;
            instead = last.instead;
        }
    }
}

/// Orders calls that are alike: of two with the same effect, the one that was asked for first and is answered no later goes
/// first. They could be exchanged in any order that fits, so this loses none, and spares looking at all the others.
/// `alike` names the effect of a call, or nothing for one that differs from all others.
pub fn order_alike<S, K: Ord>(calls: &mut [Call<S>], alike: impl Fn(&S) -> Option<K>) {
    let causes: HashSet<usize> = calls.iter().filter_map(|call| call.after).collect();
    let mut places: Vec<(K, bool, u64, u64, usize)> = calls
        .iter()
        .enumerate()
        .filter(|(index, call)| call.after.is_none() && !causes.contains(index))
        .filter_map(|(index, call)| {
            let perhaps = call.effect == Effect::Perhaps;
            Some((alike(&call.step)?, perhaps, call.asked_us, call.effect.deadline(), index))
        })
        .collect();
    places.sort();
    for pair in places.windows(2) {
        let ((one, one_perhaps, _, one_by, first), (other, other_perhaps, _, other_by, second)) = (&pair[0], &pair[1]);
        if one == other && one_perhaps == other_perhaps && one_by <= other_by {
            calls[*second].after = Some(*first);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOKS_MAX: usize = 1_000_000;

    /// A register that is written, read, and swapped if it has the value that was expected.
    struct Register;

    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Step {
        Write(u32),
        Read(u32),
        /// Expected, new, and whether it was told to have succeeded.
        Swap(u32, u32, bool),
        Add(u32),
    }

    impl Model for Register {
        type State = u32;
        type Step = Step;

        fn initial(&self) -> u32 {
            0
        }

        fn apply(&self, state: &u32, step: &Step) -> Vec<u32> {
            match *step {
                Step::Write(value) => vec![value],
                Step::Read(value) if value == *state => vec![*state],
                Step::Swap(expected, new, true) if expected == *state => vec![new],
                Step::Swap(expected, _, false) if expected != *state => vec![*state],
                Step::Add(value) => vec![state + value],
                Step::Read(_) | Step::Swap(..) => Vec::new(),
            }
        }
    }

    fn call(step: Step, asked_us: u64, answered_us: u64) -> Call<Step> {
        Call { step, asked_us, effect: Effect::By(answered_us), after: None }
    }

    fn open(step: Step, asked_us: u64, effect: Effect) -> Call<Step> {
        Call { step, asked_us, effect, after: None }
    }

    fn is_linearizable(calls: &[Call<Step>]) -> bool {
        match judge(&Register, calls, LOOKS_MAX) {
            Verdict::Linearizable => true,
            Verdict::Not { .. } => false,
            Verdict::Undecided { looked_at } => panic!("not decided after {looked_at}"),
        }
    }

    #[test]
    fn histories_that_are_known_are_judged_as_they_are_known() {
        use Effect::{Perhaps, Sometime};
        use Step::{Add, Read, Swap, Write};
        let table: Vec<(&str, bool, Vec<Call<Step>>)> = vec![
            ("nothing happened", true, vec![]),
            ("a read of what is there", true, vec![call(Read(0), 0, 1)]),
            ("a read of what never was", false, vec![call(Read(7), 0, 1)]),
            ("a write that is answered is seen", true, vec![call(Write(1), 0, 1), call(Read(1), 2, 3)]),
            ("a stale read after an answered write", false, vec![call(Write(1), 0, 1), call(Read(0), 2, 3)]),
            ("a read beside a write sees the old", true, vec![call(Write(1), 0, 9), call(Read(0), 2, 3)]),
            ("a read beside a write sees the new", true, vec![call(Write(1), 0, 9), call(Read(1), 2, 3)]),
            ("new, then old, beside one write", false, vec![call(Write(1), 0, 9), call(Read(1), 1, 2), call(Read(0), 3, 4)]),
            ("old, then new, beside one write", true, vec![call(Write(1), 0, 9), call(Read(0), 1, 2), call(Read(1), 3, 4)]),
            ("reads beside each other may disagree", true, vec![call(Write(1), 0, 9), call(Read(1), 1, 4), call(Read(0), 2, 3)]),
            (
                "two readers cannot see two writes in two orders",
                false,
                vec![call(Write(1), 0, 1), call(Write(2), 0, 1), call(Read(1), 2, 3), call(Read(2), 4, 5)],
            ),
            (
                "two writes at once may end either way",
                true,
                vec![call(Write(1), 0, 5), call(Write(2), 0, 5), call(Read(1), 6, 7), call(Read(1), 8, 9)],
            ),
            (
                "a write of an earlier time cannot come back",
                false,
                vec![call(Write(1), 0, 1), call(Write(2), 2, 3), call(Read(1), 4, 5)],
            ),
            (
                "a write of unknown outcome is seen late",
                true,
                vec![open(Write(1), 0, Perhaps), call(Read(0), 1, 2), call(Read(1), 8, 9)],
            ),
            ("a write of unknown outcome is never seen", true, vec![open(Write(1), 0, Perhaps), call(Read(0), 8, 9)]),
            (
                "a write of unknown outcome is seen and then not",
                false,
                vec![open(Write(1), 0, Perhaps), call(Read(1), 1, 2), call(Read(0), 8, 9)],
            ),
            (
                "what is unknown cannot have happened before it was asked",
                false,
                vec![call(Read(1), 0, 1), open(Write(1), 2, Perhaps)],
            ),
            (
                "one unknown write cannot explain two",
                false,
                vec![open(Add(1), 0, Perhaps), call(Read(1), 1, 2), call(Read(2), 3, 4)],
            ),
            ("what did happen must have been possible", false, vec![open(Swap(5, 6, true), 0, Sometime), call(Read(0), 1, 2)]),
            ("what may have happened need not have been", true, vec![open(Swap(5, 6, true), 0, Perhaps), call(Read(0), 1, 2)]),
            ("what did happen may have happened late", true, vec![open(Add(1), 0, Sometime), call(Read(0), 5, 6)]),
            (
                "of two swaps from the same value one succeeds",
                false,
                vec![call(Swap(0, 1, true), 0, 5), call(Swap(0, 2, true), 0, 5)],
            ),
            (
                "of two swaps from the same value one fails",
                true,
                vec![call(Swap(0, 1, true), 0, 5), call(Swap(0, 2, false), 0, 5)],
            ),
            ("a lost update", false, vec![call(Add(1), 0, 5), call(Add(1), 0, 5), call(Read(1), 6, 7)]),
            (
                "three writes that overlap in a chain",
                true,
                vec![
                    call(Write(1), 0, 4),
                    call(Write(2), 3, 8),
                    call(Write(3), 7, 12),
                    call(Read(1), 5, 6),
                    call(Read(2), 9, 10),
                    call(Read(3), 13, 14),
                ],
            ),
            (
                "a chain that is read against its order",
                false,
                vec![
                    call(Write(1), 0, 4),
                    call(Write(2), 3, 8),
                    call(Write(3), 9, 12),
                    call(Read(2), 5, 6),
                    call(Read(1), 7, 8),
                    call(Read(2), 8, 9),
                ],
            ),
            ("what meets in one microsecond is concurrent", true, vec![call(Write(1), 0, 5), call(Read(0), 5, 6)]),
        ];
        for (name, expected, calls) in table {
            assert_eq!(is_linearizable(&calls), expected, "{name}");
        }
    }

    #[test]
    fn a_consequence_comes_after_its_cause() {
        let caused = |after| Call { after, ..call(Step::Read(0), 0, 9) };
        assert!(is_linearizable(&[call(Step::Write(1), 0, 9), caused(None)]));
        assert!(!is_linearizable(&[call(Step::Write(1), 0, 9), caused(Some(0))]));
    }

    /// The truth for a few calls: every order of every choice of them.
    fn brute_force(calls: &[Call<Step>]) -> bool {
        fn fits(calls: &[Call<Step>], state: u32, left: &[usize]) -> bool {
            if left.iter().all(|call| calls[*call].effect == Effect::Perhaps) {
                return true;
            }
            left.iter().any(|next| {
                let is_first = left.iter().all(|other| calls[*other].effect.deadline() >= calls[*next].asked_us);
                let rest: Vec<usize> = left.iter().copied().filter(|call| call != next).collect();
                is_first
                    && calls[*next].after.is_none_or(|cause| !left.contains(&cause))
                    && Register.apply(&state, &calls[*next].step).into_iter().any(|state| fits(calls, state, &rest))
            })
        }
        fits(calls, 0, &(0..calls.len()).collect::<Vec<_>>())
    }

    #[test]
    fn a_verdict_is_that_of_trying_every_order() {
        let mut random = fastrand::Rng::with_seed(7);
        let (mut yes, mut no) = (0, 0);
        for _ in 0..20_000 {
            let count = random.usize(1..=6);
            let calls: Vec<Call<Step>> = (0..count)
                .map(|index| {
                    let step = match random.u32(0..6) {
                        0 => Step::Write(random.u32(0..3)),
                        1 => Step::Add(random.u32(1..3)),
                        2 => Step::Swap(random.u32(0..3), random.u32(0..3), random.bool()),
                        _ => Step::Read(random.u32(0..3)),
                    };
                    let asked_us = random.u64(0..12);
                    let effect = match random.u32(0..8) {
                        0 => Effect::Perhaps,
                        1 => Effect::Sometime,
                        _ => Effect::By(asked_us + random.u64(0..6)),
                    };
                    let after = (index > 0 && random.u32(0..6) == 0).then(|| random.usize(0..index));
                    // A cause that may never have been would leave its consequence without one.
                    Call { step, asked_us, effect, after }
                })
                .collect();
            let truth = brute_force(&calls);
            assert_eq!(is_linearizable(&calls), truth, "{calls:?}");
            *(if truth { &mut yes } else { &mut no }) += 1;

            let mut ordered = calls.clone();
            order_alike(&mut ordered, |step| match step {
                Step::Add(value) => Some(*value),
                _ => None,
            });
            assert_eq!(is_linearizable(&ordered), truth, "{calls:?} in order");
        }
        assert!(yes > 2_000 && no > 2_000, "{yes} are, {no} are not");
    }

    /// What really happened, one step after the other, as clients saw it who waited a little before and after each step.
    fn lived(random: &mut fastrand::Rng, count: usize, clients: u64) -> Vec<Call<Step>> {
        let mut state = 0;
        (1..=count as u64)
            .map(|moment| {
                let step = match random.u32(0..4) {
                    0 => Step::Write(random.u32(0..100)),
                    1 => Step::Add(random.u32(1..5)),
                    2 => Step::Swap(state, random.u32(0..100), true),
                    _ => Step::Read(state),
                };
                state = Register.apply(&state, &step)[0];
                let at = moment * 100;
                let asked_us = at - random.u64(0..clients * 100).min(at);
                let effect = match random.u32(0..150) {
                    0 if !matches!(step, Step::Read(_)) => Effect::Perhaps,
                    1 => Effect::Sometime,
                    _ => Effect::By(at + random.u64(0..clients * 100)),
                };
                Call { step, asked_us, effect, after: None }
            })
            .collect()
    }

    #[test]
    fn what_really_happened_is_always_accepted_and_an_answer_that_nothing_explains_never() {
        let mut random = fastrand::Rng::with_seed(11);
        let mut rejected = 0;
        for round in 0..40 {
            let calls = lived(&mut random, 400, 1 + round % 3);
            let mut alike = calls.clone();
            order_alike(&mut alike, |step| match step {
                Step::Add(value) => Some(*value),
                _ => None,
            });
            assert!(is_linearizable(&calls), "round {round}");
            assert!(is_linearizable(&alike), "round {round}, in order");
            // To reject one takes every order that its sloppy clients leave open: fewer of them.
            let mut calls = lived(&mut random, 60, 1 + round % 2);
            let wrong = calls.iter().position(|call| matches!(call.step, Step::Read(_))).unwrap();
            calls[wrong].step = Step::Read(u32::MAX);
            calls[wrong].effect = Effect::By(calls[wrong].asked_us + 50);
            match judge(&Register, &calls, LOOKS_MAX) {
                Verdict::Linearizable => panic!("round {round}"),
                Verdict::Not { .. } => rejected += 1,
                Verdict::Undecided { .. } => {}
            }
        }
        assert!(rejected > 30, "{rejected} of 40 are rejected");
    }

    #[test]
    fn a_stale_answer_in_the_midst_of_what_really_happened_is_rejected() {
        let mut random = fastrand::Rng::with_seed(12);
        for _ in 0..40 {
            // A counter that only grows: what was read before an answered step can never be read again.
            let mut calls = Vec::new();
            for moment in 1..=200_u64 {
                let at = moment * 10;
                let jitter = random.u64(0..8);
                calls.push(call(Step::Add(1), at - jitter, at + jitter));
                calls.push(call(Step::Read(u32::try_from(moment).unwrap()), at + 9, at + 9));
            }
            assert!(is_linearizable(&calls));
            let wrong = random.usize(20..200) * 2 + 1;
            let Step::Read(value) = calls[wrong].step else { panic!("not a read") };
            calls[wrong].step = Step::Read(value - random.u32(3..10));
            assert!(!is_linearizable(&calls));
        }
    }

    #[test]
    fn what_is_too_much_to_search_is_left_undecided_and_never_guessed() {
        // Any order of these is possible until the read, which none explains: 2^40 sets.
        let mut calls: Vec<Call<Step>> = (0..40).map(|bit| open(Step::Add(1 + (bit << 8)), 0, Effect::Sometime)).collect();
        calls.push(call(Step::Read(3), 1, 2));
        assert!(matches!(judge(&Register, &calls, 10_000), Verdict::Undecided { looked_at } if looked_at > 10_000));
    }

    #[test]
    fn what_is_alike_costs_one_order_and_not_all() {
        let mut calls: Vec<Call<Step>> = (0..200).map(|n| open(Step::Add(1), n, Effect::Sometime)).collect();
        calls.extend((0..200).map(|n| call(Step::Read(n / 2), 1_000 + u64::from(n), 1_000 + u64::from(n))));
        calls.push(call(Step::Read(5), 3_000, 3_001));
        order_alike(&mut calls, |step| match step {
            Step::Add(value) => Some(*value),
            _ => None,
        });
        assert!(matches!(judge(&Register, &calls, 100_000), Verdict::Not { .. }));
    }

    #[test]
    fn the_verdict_says_how_far_it_came_and_what_did_not_fit() {
        let calls = [call(Step::Write(1), 0, 1), call(Step::Read(1), 2, 3), call(Step::Read(0), 4, 5)];
        assert_eq!(judge(&Register, &calls, LOOKS_MAX), Verdict::Not { explained: 2, stuck: 2, state: "1".into() });
    }
}
