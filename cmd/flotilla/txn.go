package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/flotilla-kv/flotilla/client"
)

func newTxnCommand(g *globals) *cobra.Command {
	d := &dataFlags{globals: g}
	var conditions, otherwise []string
	command := d.add(&cobra.Command{
		Use:   "txn OP...",
		Short: "Carry out operations on keys of one shard together, if conditions hold",
		Long: `Txn carries out the OPs together, in order, if all --if conditions hold,
otherwise those of --else. All keys must lie in one shard: keys with the same
{tag} do.

An OP is one argument: "get KEY", "put KEY VALUE", "del KEY", "incr KEY [BY]" or
"append KEY VALUE". A condition is "KEY exists", "KEY absent", "KEY = VALUE" or
"KEY version N". A VALUE runs to the end of the argument.

One line a result is printed. If the conditions did not hold the exit code is 1.`,
		Example: `  flotilla txn --if '{cart}apples = 3' 'put {cart}apples 2' 'incr {cart}sold'`,
		Args:    cobra.ArbitraryArgs,
	}, func(ctx context.Context, c *client.Client, out io.Writer, args []string) error {
		t, err := parseTxn(c, conditions, args, otherwise)
		if err != nil {
			return usageError{err}
		}
		result, err := t.Commit(ctx)
		if err != nil {
			return err
		}
		for _, r := range result.Results {
			if _, err := fmt.Fprintln(out, resultLine(r)); err != nil {
				return err
			}
		}
		if !result.Succeeded {
			return errors.New("a condition did not hold: the operations were not carried out")
		}
		return nil
	})
	command.Flags().StringArrayVar(&conditions, "if", nil, "a `CONDITION`; may be repeated")
	command.Flags().StringArrayVar(&otherwise, "else", nil, "an `OP` for when a condition does not hold; may be repeated")
	return command
}

func parseTxn(c *client.Client, conditions, then, otherwise []string) (*client.Txn, error) {
	if len(then)+len(otherwise) == 0 {
		return nil, errors.New("txn needs at least one OP")
	}
	t := c.Txn()
	for _, text := range conditions {
		condition, err := parseCondition(text)
		if err != nil {
			return nil, err
		}
		t.If(condition)
	}
	for _, text := range then {
		op, err := parseOp(text)
		if err != nil {
			return nil, err
		}
		t.Then(op)
	}
	for _, text := range otherwise {
		op, err := parseOp(text)
		if err != nil {
			return nil, err
		}
		t.Else(op)
	}
	return t, nil
}

func parseCondition(text string) (client.Compare, error) {
	key, rest, _ := strings.Cut(text, " ")
	what, value, hasValue := strings.Cut(rest, " ")
	switch {
	case key == "":
	case what == "exists" && !hasValue:
		return client.Exists(key), nil
	case what == "absent" && !hasValue:
		return client.Absent(key), nil
	case what == "=" && hasValue:
		return client.ValueIs(key, []byte(value)), nil
	case what == "version" && hasValue:
		if n, err := strconv.ParseUint(value, 10, 64); err == nil {
			return client.VersionIs(key, n), nil
		}
	}
	return client.Compare{}, fmt.Errorf("condition %q: it is KEY exists, KEY absent, KEY = VALUE or KEY version N", text)
}

func parseOp(text string) (client.Op, error) {
	name, rest, _ := strings.Cut(text, " ")
	key, value, hasValue := strings.Cut(rest, " ")
	switch {
	case key == "":
	case name == "get" && !hasValue:
		return client.GetOp(key), nil
	case name == "del" && !hasValue:
		return client.DeleteOp(key), nil
	case name == "put" && hasValue:
		return client.PutOp(key, []byte(value)), nil
	case name == "append" && hasValue:
		return client.AppendOp(key, []byte(value)), nil
	case name == "incr" && !hasValue:
		return client.IncrOp(key, 1), nil
	case name == "incr":
		if by, err := strconv.ParseInt(value, 10, 64); err == nil {
			return client.IncrOp(key, by), nil
		}
	}
	return client.Op{}, fmt.Errorf("operation %q: it is get KEY, put KEY VALUE, del KEY, incr KEY [BY] or append KEY VALUE", text)
}

// resultLine is what one operation of a transaction did.
func resultLine(r client.OpResult) string {
	switch {
	case errors.Is(r.Err, client.ErrNotFound):
		return r.Item.Key + " absent"
	case r.Err != nil:
		return r.Item.Key + " " + r.Err.Error()
	case len(r.Item.Value) > 0:
		return r.Item.Key + " = " + string(r.Item.Value)
	case r.Number != 0:
		return r.Item.Key + " " + strconv.FormatInt(r.Number, 10)
	}
	return r.Item.Key + " ok"
}
