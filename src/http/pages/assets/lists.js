// A page of lists that stay fresh.
import { fresh } from "./fresh.js";

fresh();
