package transport

import (
	"testing"
	"time"
)

const testSuspect = 500 * time.Millisecond

// exchange lets x send a ping to y, delay on the way.
func exchange(x, y *link, now, delay time.Duration) {
	p := x.next(at(now), at(now).UnixMilli())
	y.heard(at(now+delay), p, testSuspect)
}

func at(d time.Duration) time.Time { return time.Unix(1_000_000, 0).Add(d) }

const ms = time.Millisecond

// upPair is two links that have proven themselves to each other by 30 ms.
func upPair(t *testing.T) (a, b *link) {
	t.Helper()
	x, y := newLink(11), newLink(22)
	exchange(&x, &y, 0, 1*ms)
	if y.up {
		t.Fatal("up without an echo: it may be deaf")
	}
	exchange(&y, &x, 10*ms, 1*ms)
	if !x.up {
		t.Fatal("heard and echoed, but not up")
	}
	exchange(&x, &y, 20*ms, 1*ms)
	if !y.up {
		t.Fatal("heard and echoed, but not up")
	}
	return &x, &y
}

func TestLinkRoundTrip(t *testing.T) {
	a, _ := upPair(t)
	if a.rtt != 2*ms {
		t.Errorf("round trip %v, want 2ms: 1ms each way, 9ms waited at the peer", a.rtt)
	}
	if !a.provenAt.Equal(at(0)) {
		t.Errorf("proven at %v, want the time when the echoed ping was sent", a.provenAt)
	}
}

func TestLinkDeafPeerGoesDown(t *testing.T) {
	a, b := upPair(t)
	now := 30 * ms
	for range 20 { // b speaks, and hears nothing
		now += 100 * ms
		a.next(at(now), at(now).UnixMilli())
		exchange(b, a, now, 1*ms)
		a.expire(at(now+2*ms), testSuspect)
	}
	if a.up {
		t.Error("the peer has heard nothing for 2 s and is up")
	}
	if a.downs != 1 {
		t.Errorf("%d downs, want 1", a.downs)
	}
}

func TestLinkSilentPeerGoesDown(t *testing.T) {
	a, _ := upPair(t)
	if a.expire(at(11*ms+testSuspect-15*ms), testSuspect) {
		t.Error("down too early")
	}
	if !a.expire(at(11*ms+testSuspect), testSuspect) || a.up {
		t.Error("silent for SuspectAfter and up")
	}
	if a.expire(at(time.Hour), testSuspect) {
		t.Error("down twice")
	}
}

func TestLinkNewBootIsADeath(t *testing.T) {
	a, _ := upPair(t)
	again := newLink(23)
	if !a.heard(at(41*ms), again.next(at(40*ms), at(40*ms).UnixMilli()), testSuspect) {
		t.Error("the new boot was not noticed")
	}
	if a.up || a.downs != 1 || a.boot != 23 {
		t.Errorf("up %v, downs %d, boot %d: want down, once, 23", a.up, a.downs, a.boot)
	}
	exchange(a, &again, 50*ms, 1*ms)
	exchange(&again, a, 60*ms, 1*ms)
	if !a.up {
		t.Error("the new process is heard and hears us, but is not up")
	}
}

func TestLinkBreakNeedsNewProof(t *testing.T) {
	a, b := upPair(t)
	if !a.broken() || a.up {
		t.Fatal("a reset connection is a death")
	}
	exchange(b, a, 30*ms, 1*ms) // an echo of what it heard before the break
	if a.up {
		t.Error("an old echo proves nothing about the time after the break")
	}
	exchange(a, b, 40*ms, 1*ms)
	exchange(b, a, 50*ms, 1*ms)
	if !a.up {
		t.Error("heard after the break, but not up")
	}
}

func TestLinkIgnoresLies(t *testing.T) {
	a, b := upPair(t)
	proven, heard := a.provenAt, a.heardAt
	p := b.next(at(30*ms), at(30*ms).UnixMilli())
	p.echoSeq = a.seq + 1000 // never sent
	a.heard(at(31*ms), p, testSuspect)
	if !a.provenAt.Equal(proven) {
		t.Error("an echo of a ping that was never sent proves something")
	}
	late := p
	late.seq = 1
	a.heard(at(60*ms), late, testSuspect)
	if a.heardAt.Equal(at(60*ms)) || a.heardAt.Equal(heard) {
		t.Error("a late ping counts, or a timely one does not")
	}
	p = b.next(at(70*ms), at(70*ms).UnixMilli())
	p.echoBoot = 99 // it heard another process of ours
	p.echoSeq = a.next(at(65*ms), at(65*ms).UnixMilli()).seq
	a.heard(at(71*ms), p, testSuspect)
	if !a.provenAt.Equal(proven) {
		t.Error("an echo of another boot proves something")
	}
}

func TestLinkClock(t *testing.T) {
	a, b := upPair(t)
	if got, want := a.clockNow(at(100*ms)), at(99*ms).UnixMilli(); got != want {
		t.Errorf("clock %d, want %d: as read, plus what has passed", got, want)
	}
	exchange(b, a, 200*ms, 300*ms) // delayed: the peer's clock looks 300 ms slow
	if got, want := a.clockNow(at(600*ms)), at(599*ms).UnixMilli(); got != want {
		t.Errorf("clock %d, want %d: a delayed reading has displaced a better one", got, want)
	}
	p := b.next(at(700*ms), at(700*ms).UnixMilli())
	p.clock -= 3_600_000 // set back by an hour
	a.heard(at(701*ms), p, testSuspect)
	if got, want := a.clockNow(at(702*ms)), at(701*ms).UnixMilli()-3_600_000; got != want {
		t.Errorf("clock %d, want %d: no ping takes an hour, it was set back", got, want)
	}
	for now := 800 * ms; now < 700*ms+clockHold+200*ms; now += 100 * ms {
		p := b.next(at(now), at(now).UnixMilli())
		p.clock -= 3_600_000
		a.heard(at(now+1*ms), p, testSuspect)
	}
	if got, want := a.clockNow(at(6*time.Second)), at(6*time.Second).UnixMilli()-3_600_000; got > want || got < want-10 {
		t.Errorf("clock %d, want about %d: it was set back", got, want)
	}
}

func TestPauseWatch(t *testing.T) {
	w := pauseWatch{suspectAfter: testSuspect, last: at(0)}
	if !w.mayJudge(at(50*ms)) || !w.mayJudge(at(100*ms)) {
		t.Error("in its normal pace it must judge")
	}
	if w.mayJudge(at(10 * time.Second)) {
		t.Error("it stood still for ten seconds and judges at once")
	}
	for now := 10*time.Second + 50*ms; now < 10*time.Second+testSuspect; now += 50 * ms {
		if w.mayJudge(at(now)) {
			t.Fatalf("it judges %v after a standstill", now-10*time.Second)
		}
	}
	if !w.mayJudge(at(10*time.Second + testSuspect)) {
		t.Error("it never judges again")
	}
}
