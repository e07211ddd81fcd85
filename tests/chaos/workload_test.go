//go:build chaos

package chaos

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/flotilla-kv/flotilla/client"
)

// tally counts operations by what is known of them.
type tally struct{ ok, failed, unknown int64 }

func (t *tally) add(e effect) {
	switch e {
	case applied:
		t.ok++
	case without:
		t.failed++
	case open:
		t.unknown++
	}
}

func (t *tally) plus(o tally) {
	t.ok += o.ok
	t.failed += o.failed
	t.unknown += o.unknown
}

// counter is a key that several clients increment, through several doors.
type counter struct {
	key string

	mu       sync.Mutex // guards what follows
	done     tally
	heard    map[int64]bool // answers
	problems []string
}

// work is one client of the counter.
func (c *counter) work(ctx context.Context, w writer) {
	last := int64(0)
	for ctx.Err() == nil {
		opCtx, cancel := context.WithTimeout(context.Background(), opTimeout)
		answer, heard, e := w.incr(opCtx, c.key)
		cancel()
		c.mu.Lock()
		c.done.add(e)
		if heard {
			if c.heard[answer] {
				c.problems = append(c.problems, fmt.Sprintf("two increments of %s were answered %d", c.key, answer))
			}
			if answer <= last {
				c.problems = append(c.problems, fmt.Sprintf("an increment of %s was answered %d after the same client had heard %d", c.key, answer, last))
			}
			c.heard[answer] = true
			last = answer
		}
		c.mu.Unlock()
		sleep(ctx, think)
	}
}

// check compares what is stored now with what was heard.
func (c *counter) check(ctx context.Context, get getter) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	problems := c.problems
	text, err := get(ctx, c.key)
	value, parseErr := strconv.ParseInt("0"+text, 10, 64)
	switch {
	case err != nil || parseErr != nil:
		return append(problems, fmt.Sprintf("counter %s cannot be read: %q, %v, %v", c.key, text, err, parseErr))
	case value < c.done.ok:
		problems = append(problems, fmt.Sprintf("counter %s is %d after %d increments that were acknowledged: %d are lost", c.key, value, c.done.ok, c.done.ok-value))
	case value > c.done.ok+c.done.unknown:
		problems = append(problems, fmt.Sprintf("counter %s is %d after %d acknowledged and %d unknown increments: %d took effect twice, or though they were said to have none",
			c.key, value, c.done.ok, c.done.unknown, value-c.done.ok-c.done.unknown))
	}
	return problems
}

// getter reads a key; an absent one is empty.
type getter func(ctx context.Context, key string) (string, error)

// list is a key to which several clients append tokens, each its own numbers.
// One that has got long gives way to a fresh one.
type list struct {
	prefix string

	mu     sync.Mutex // guards what follows
	done   tally
	tokens map[token]effect
	fresh  int // lists begun
	length int // tokens of the last
}

type token struct {
	list           string
	client, number int
}

const listTokensMax = 2_000

func (t token) String() string { return fmt.Sprintf("%d.%d ", t.client, t.number) }

// next is the token that a client appends next.
func (l *list) next(client, number int) token {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.length++; l.length > listTokensMax {
		l.fresh, l.length = l.fresh+1, 1
	}
	return token{fmt.Sprintf("%s%d", l.prefix, l.fresh), client, number}
}

// work is one client of the list.
func (l *list) work(ctx context.Context, w writer, client int) {
	for number := 1; ctx.Err() == nil; number++ {
		t := l.next(client, number)
		opCtx, cancel := context.WithTimeout(context.Background(), opTimeout)
		e := w.append(opCtx, t.list, t.String())
		cancel()
		l.mu.Lock()
		l.tokens[t] = e
		l.done.add(e)
		l.mu.Unlock()
		sleep(ctx, think)
	}
}

// check reads the lists back: each acknowledged token is there once, none twice,
// none that had no effect, and those of a client that were acknowledged stand in
// the order in which it appended them.
func (l *list) check(ctx context.Context, get getter) (problems []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	found := make(map[token]int)
	for i := range l.fresh + 1 {
		key := fmt.Sprintf("%s%d", l.prefix, i)
		text, err := get(ctx, key)
		if err != nil {
			return append(problems, fmt.Sprintf("list %s cannot be read: %v", key, err))
		}
		last := make(map[int]int) // by client: the last acknowledged number
		for word := range strings.FieldsSeq(text) {
			t := token{list: key}
			if _, err := fmt.Sscanf(word, "%d.%d", &t.client, &t.number); err != nil {
				problems = append(problems, fmt.Sprintf("list %s holds %q, which nobody appended", key, word))
				continue
			}
			found[t]++
			e, appended := l.tokens[t]
			switch {
			case !appended:
				problems = append(problems, fmt.Sprintf("list %s holds %v, which nobody appended", key, t))
			case e == without:
				problems = append(problems, fmt.Sprintf("list %s holds %v, of which was said that it had no effect", key, t))
			case e == applied && t.number < last[t.client]:
				problems = append(problems, fmt.Sprintf("list %s holds %v behind %d of the same client", key, t, last[t.client]))
			}
			if e == applied {
				last[t.client] = max(last[t.client], t.number)
			}
		}
	}
	for t, e := range l.tokens {
		switch n := found[t]; {
		case n > 1:
			problems = append(problems, fmt.Sprintf("list %s holds %v %d times", t.list, t, n))
		case n == 0 && e == applied:
			problems = append(problems, fmt.Sprintf("list %s has lost %v, which was acknowledged", t.list, t))
		}
	}
	return problems
}

// bank are accounts in one shard between which transactions move money: at any
// moment they hold the same together.
type bank struct {
	prefix string

	mu       sync.Mutex // guards what follows
	done     tally
	problems []string
}

const (
	accounts       = 3
	accountBalance = 100
)

func (b *bank) account(i int) string { return fmt.Sprintf("{%s}%d", b.prefix, i) }

// work is one client of the bank.
func (b *bank) work(ctx context.Context, c *client.Client, name int) {
	for n := name; ctx.Err() == nil; n++ {
		opCtx, cancel := context.WithTimeout(context.Background(), opTimeout)
		err := b.transfer(opCtx, c, n%accounts, (n+1+n/7%(accounts-1))%accounts, int64(1+n%9))
		cancel()
		b.mu.Lock()
		b.done.add(effectOf(err))
		b.mu.Unlock()
		sleep(ctx, think)
	}
}

// transfer reads all accounts in one transaction, and moves money in a second
// that holds only if nobody has meanwhile.
func (b *bank) transfer(ctx context.Context, c *client.Client, from, to int, amount int64) error {
	balances, err := b.read(ctx, c)
	if errors.Is(err, client.ErrNotFound) {
		return b.open(ctx, c)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", errWithout, err)
	}
	if from == to || balances[from] < amount {
		return nil
	}
	_, err = c.Txn().
		If(client.ValueIs(b.account(from), decimal(balances[from])), client.ValueIs(b.account(to), decimal(balances[to]))).
		Then(client.PutOp(b.account(from), decimal(balances[from]-amount)), client.PutOp(b.account(to), decimal(balances[to]+amount))).
		Commit(ctx)
	return err
}

func decimal(n int64) []byte { return strconv.AppendInt(nil, n, 10) }

func (b *bank) open(ctx context.Context, c *client.Client) error {
	t := c.Txn().If(client.Absent(b.account(0)))
	for i := range accounts {
		t.Then(client.PutOp(b.account(i), decimal(accountBalance)))
	}
	_, err := t.Commit(ctx)
	return err
}

// read reads the accounts at one moment, and looks at their sum.
func (b *bank) read(ctx context.Context, c *client.Client) (balances [accounts]int64, err error) {
	t := c.Txn()
	for i := range accounts {
		t.Then(client.GetOp(b.account(i)))
	}
	r, err := t.Commit(ctx)
	if err != nil {
		return balances, err
	}
	sum := int64(0)
	for i, result := range r.Results {
		if result.Err != nil {
			return balances, result.Err
		}
		if balances[i], err = strconv.ParseInt(string(result.Item.Value), 10, 64); err != nil {
			return balances, err
		}
		sum += balances[i]
	}
	if sum != accounts*accountBalance {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.problems = append(b.problems, fmt.Sprintf("the accounts %s hold %v, together %d instead of %d", b.prefix, balances, sum, accounts*accountBalance))
	}
	return balances, nil
}

func (b *bank) check(ctx context.Context, c *client.Client) []string {
	_, err := b.read(ctx, c)
	b.mu.Lock()
	defer b.mu.Unlock()
	if err != nil && !(errors.Is(err, client.ErrNotFound) && b.done.ok == 0) {
		return append(b.problems, fmt.Sprintf("the accounts %s cannot be read: %v", b.prefix, err))
	}
	return b.problems
}

// readPatiently reads a key, again and again while nobody answers.
func readPatiently(c *client.Client) getter {
	return func(ctx context.Context, key string) (string, error) {
		for {
			item, err := c.Get(ctx, key)
			switch {
			case errors.Is(err, client.ErrNotFound):
				return "", nil
			case err == nil || !sleep(ctx, 50*time.Millisecond):
				return string(item.Value), err
			}
		}
	}
}
