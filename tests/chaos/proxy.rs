//! A TCP proxy that can be cut and healed, to stand between a node and NATS.
//!
//! A black hole holds the bytes back, in one direction or both, and lets them go when it is healed: what TCP makes of a
//! network that was gone for a while. Who connects meanwhile is let in and hears nothing, where a real one would leave even
//! the handshake unanswered. A reset breaks every connection, and each new one.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

const BUFFER_BYTES: usize = 16 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Through,
    /// Nothing gets to the server, but its words get out.
    NothingIn,
    /// Nothing gets back from the server.
    NothingOut,
    BlackHole,
    Reset,
}

pub struct Proxy {
    pub address: SocketAddr,
    way: watch::Sender<Way>,
    listens: tokio::task::AbortHandle,
}

impl Proxy {
    /// Listens on a free port of this address, and passes on to the server.
    pub async fn to(server: SocketAddr) -> Proxy {
        let listener = TcpListener::bind((server.ip(), 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let way = watch::Sender::new(Way::Through);
        let ways = way.clone();
        let listens = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(pass(client, server, ways.subscribe()));
            }
        });
        Proxy { address, way, listens: listens.abort_handle() }
    }

    pub fn set(&self, way: Way) {
        self.way.send_replace(way);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.listens.abort();
        self.way.send_replace(Way::Reset);
    }
}

async fn pass(mut client: TcpStream, server: SocketAddr, mut way: watch::Receiver<Way>) {
    let Ok(mut server) = TcpStream::connect(server).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let was_reset = {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let inwards = pump(from_client, to_server, way.clone(), |way| !matches!(way, Way::NothingIn | Way::BlackHole));
        let outwards = pump(from_server, to_client, way.clone(), |way| !matches!(way, Way::NothingOut | Way::BlackHole));
        tokio::select! {
            reset = way.wait_for(|way| *way == Way::Reset) => reset.is_ok(),
            _ = async { tokio::join!(inwards, outwards) } => false,
        }
    };
    if was_reset {
        // Closed with unsent bytes thrown away, the other side sees a reset.
        let _ = (client.set_zero_linger(), server.set_zero_linger());
    }
}

async fn pump(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    mut way: watch::Receiver<Way>,
    passes: fn(Way) -> bool,
) -> Option<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let count = from.read(&mut buffer).await.ok()?;
        way.wait_for(|way| passes(*way)).await.ok()?;
        if count == 0 {
            return to.shutdown().await.ok();
        }
        to.write_all(&buffer[..count]).await.ok()?;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;
    use crate::faults::Cut;

    const PATIENCE: Duration = Duration::from_secs(10);
    /// How long nothing must come.
    const SILENCE: Duration = Duration::from_millis(100);

    /// A server that says everything twice.
    async fn echo() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut byte = [0];
                    while stream.read_exact(&mut byte).await.is_ok() {
                        let _ = stream.write_all(&[byte[0], byte[0]]).await;
                    }
                });
            }
        });
        address
    }

    async fn says(stream: &mut TcpStream, byte: u8) {
        stream.write_all(&[byte]).await.unwrap();
    }

    async fn hears(stream: &mut TcpStream) -> Option<[u8; 2]> {
        let mut heard = [0; 2];
        timeout(PATIENCE, stream.read_exact(&mut heard)).await.expect("nothing is heard").ok()?;
        Some(heard)
    }

    async fn hears_nothing(stream: &mut TcpStream) {
        let mut byte = [0];
        assert!(timeout(SILENCE, stream.read(&mut byte)).await.is_err());
    }

    #[tokio::test]
    async fn what_is_held_back_comes_when_the_way_is_healed() {
        let proxy = Proxy::to(echo().await).await;
        let mut stream = TcpStream::connect(proxy.address).await.unwrap();
        says(&mut stream, 1).await;
        assert_eq!(hears(&mut stream).await, Some([1, 1]));
        for (byte, cut) in (2..).zip([Cut::BothWays, Cut::NodeToNats, Cut::NatsToNode]) {
            proxy.set(cut.way());
            says(&mut stream, byte).await;
            hears_nothing(&mut stream).await;
            proxy.set(Way::Through);
            assert_eq!(hears(&mut stream).await, Some([byte, byte]), "{cut:?}");
        }
    }

    #[tokio::test]
    async fn one_direction_is_cut_and_the_other_is_not() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Proxy::to(listener.local_addr().unwrap()).await;
        let mut client = TcpStream::connect(proxy.address).await.unwrap();
        let (mut server, _) = timeout(PATIENCE, listener.accept()).await.unwrap().unwrap();
        proxy.set(Way::NothingIn);
        client.write_all(&[1, 1]).await.unwrap();
        hears_nothing(&mut server).await;
        server.write_all(&[2, 2]).await.unwrap();
        assert_eq!(hears(&mut client).await, Some([2, 2]));
    }

    #[tokio::test]
    async fn a_reset_breaks_what_is_there_and_what_comes_until_it_is_healed() {
        let proxy = Proxy::to(echo().await).await;
        let mut stream = TcpStream::connect(proxy.address).await.unwrap();
        says(&mut stream, 1).await;
        assert_eq!(hears(&mut stream).await, Some([1, 1]));
        proxy.set(Cut::Reset.way());
        let broken = timeout(PATIENCE, stream.read(&mut [0])).await.expect("nothing is heard").unwrap_err();
        assert_eq!(broken.kind(), std::io::ErrorKind::ConnectionReset);
        let mut new = TcpStream::connect(proxy.address).await.unwrap();
        assert!(!matches!(timeout(PATIENCE, new.read(&mut [0])).await.expect("nothing is heard"), Ok(1..)));
        proxy.set(Way::Through);
        let mut new = TcpStream::connect(proxy.address).await.unwrap();
        says(&mut new, 3).await;
        assert_eq!(hears(&mut new).await, Some([3, 3]));
    }
}
