# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
