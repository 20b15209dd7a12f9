//! Many small things of fixed fields as text: their bytes one after the other, in base64. A million of them are read when a
//! large sale comes to life, and written again and again while it is hot.

use std::fmt;
use std::marker::PhantomData;

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use serde::{Deserializer, Serializer, de};

/// Things to a text.
const TEXT: usize = 1024;

pub trait Packed: Sized {
    fn pack(&self, out: &mut Vec<u8>);

    /// Takes one off the front; `None` when the bytes are not such a thing.
    fn unpack(bytes: &mut &[u8]) -> Option<Self>;
}

/// The next field.
pub fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (field, rest) = bytes.split_first_chunk::<N>()?;
    *bytes = rest;
    Some(*field)
}

pub fn serialize<S: Serializer>(things: impl Iterator<Item = impl Packed>, serializer: S) -> Result<S::Ok, S::Error> {
    let mut things = things.peekable();
    let mut bytes = Vec::new();
    serializer.collect_seq(std::iter::from_fn(|| {
        things.peek()?;
        bytes.clear();
        things.by_ref().take(TEXT).for_each(|thing| thing.pack(&mut bytes));
        Some(STANDARD_NO_PAD.encode(&bytes))
    }))
}

/// Hands each to `each`, in their order.
pub fn deserialize<'de, T, D>(deserializer: D, each: impl FnMut(T)) -> Result<(), D::Error>
where
    T: Packed,
    D: Deserializer<'de>,
{
    deserializer.deserialize_seq(Texts(each, PhantomData))
}

struct Texts<T, F>(F, PhantomData<fn() -> T>);

impl<'de, T: Packed, F: FnMut(T)> de::Visitor<'de> for Texts<T, F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("packed texts")
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut texts: A) -> Result<(), A::Error> {
        let Texts(mut each, _) = self;
        let mut bytes = Vec::new();
        while texts.next_element_seed(Text(&mut each, &mut bytes, PhantomData))?.is_some() {}
        Ok(())
    }
}

struct Text<'a, T, F>(&'a mut F, &'a mut Vec<u8>, PhantomData<fn() -> T>);

impl<'de, T: Packed, F: FnMut(T)> de::DeserializeSeed<'de> for Text<'_, T, F> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<T: Packed, F: FnMut(T)> de::Visitor<'_> for Text<'_, T, F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("bytes in base64")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<(), E> {
        let Text(each, bytes, _) = self;
        bytes.clear();
        STANDARD_NO_PAD.decode_vec(text, bytes).map_err(E::custom)?;
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            each(T::unpack(&mut rest).ok_or_else(|| E::custom("not what is packed here"))?);
        }
        Ok(())
    }
}
